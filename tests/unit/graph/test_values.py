"""Small questions about values, and graph files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import load_model, save_model
from gpusq_deploy.graph.values import add_initializer, array_of, insert_before, per_sample_size

RELU = "g (float[B,8] x) => (float[B,8] y) { [r] y = Relu(x) }"


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (["batch", 17, 64], 17 * 64),
        (["4*batch", 16], 64),
        (["batch*4", 16], 64),
        ([3, "batch", 5], 15),
        (["s77", 5], 5),
        (["batch", "tokens", 5], None),
        (["batch", "batch"], None),
        ([], 1),
        ([None, 5], None),
        (["batch + 1", 5], None),
        (["batch//2", 5], None),
        (["batch**2", 5], None),
        (["(batch + 2)*3", 5], None),
    ],
)
def test_elements_of_one_sample(shape: list[int | str | None], size: int | None) -> None:
    assert per_sample_size(ir.Value(name="x", shape=ir.Shape(shape))) == size


def test_a_value_without_a_shape_has_no_size() -> None:
    assert per_sample_size(ir.Value(name="x")) is None


def test_what_is_no_constant_is_refused() -> None:
    with pytest.raises(GpusqError, match="not a constant") as caught:
        array_of(ir.Value(name="x"))
    assert caught.value.place == "x"


def test_a_name_is_not_given_twice() -> None:
    graph = tiny_models.graph(RELU).graph
    add_initializer(graph, "w", np.ones(2))
    with pytest.raises(GpusqError, match="already has a tensor"):
        add_initializer(graph, "w", np.ones(2))


def test_a_node_outside_every_graph_is_refused() -> None:
    loose = ir.node("Relu", [ir.Value(name="x")], name="loose")
    with pytest.raises(GpusqError, match="no graph"):
        insert_before(loose, ir.node("Abs", [ir.Value(name="x")]), like=ir.Value(name="x"), dtype=ir.DataType.FLOAT)


@pytest.mark.parametrize("content", [b"hello", b"\x00" * 50, b"\x08\x0a\x12\xff\xff"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(GpusqError) as caught:
        load_model(path)
    assert caught.value.place == str(path)


def test_an_empty_file_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for path in (tmp_path, tmp_path / "none.onnx", tmp_path / "empty.onnx"):
        with pytest.raises(GpusqError):
            load_model(path)


@pytest.mark.slow
def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    save_model(tiny_models.exported_vit().model, path)
    data = path.read_bytes()
    for part in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(GpusqError, match=r"not an ONNX model, or damaged|no nodes"):
            load_model(path)


@pytest.mark.slow
def test_a_saved_model_answers_the_same_and_saves_to_the_same_bytes(tmp_path: Path) -> None:
    model = tiny_models.exported_vit().model
    save_model(model, tmp_path / "one.onnx")
    again = load_model(tmp_path / "one.onnx")
    save_model(again, tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    feeds = {"input": tiny_models.images(2)}
    np.testing.assert_array_equal(
        tiny_models.run_model(model, feeds)["output"], tiny_models.run_model(again, feeds)["output"]
    )
