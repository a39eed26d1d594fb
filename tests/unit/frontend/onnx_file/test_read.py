"""ONNX files as inputs: what is read of them, and what is refused with a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_files
import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts import BatchRange, Preprocessing
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.frontend.export.names import Names
from gpusq_deploy.frontend.onnx_file.export import batch_of_file, graph_of_file
from gpusq_deploy.frontend.onnx_file.read import load_onnx
from gpusq_deploy.graph.layers import weighted_layers

DYNAMIC = BatchRange(minimum=1, optimum=8, maximum=32)
HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
PLAIN = HEAD + "m (float[N, 4] x) => (float[N, 5] y) { y = MatMul(x, w) }"
WEIGHT = np.random.default_rng(0).standard_normal((4, 5), dtype=np.float32)


def read(path: Path, undeclared: Callable[[], Preprocessing | None] = lambda: None) -> Checkpoint:
    return load_onnx(path, module=torch.nn.Identity, undeclared=undeclared)


def converted(checkpoint: Checkpoint, batch: BatchRange = DYNAMIC, opset: int = 20, names: Names | None = None) -> Any:
    assert checkpoint.given is not None
    return graph_of_file(checkpoint.given.model, batch=batch, opset=opset, names=names or Names(), place="here")


def answers(path: Path, feed: npt.NDArray[Any], opset: int = 20) -> None:
    """The converted graph answers as the file does."""
    model = converted(read(path), opset=opset)
    (expected,) = onnx_files.run_file(path, feed)
    (got,) = tiny_models.run_model(model, {model.graph.inputs[0].name: feed}).values()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [19, 20, 22])
def test_a_file_of_another_framework_has_layers_and_answers_as_before(tmp_path: Path, opset: int) -> None:
    path = onnx_files.write_by_hand(tmp_path / "model.onnx")
    answers(path, np.random.default_rng(0).standard_normal((3, 6, 32), dtype=np.float32), opset)
    checkpoint = read(path)
    model = converted(checkpoint, opset=opset)
    assert model.opset_imports[""] == opset
    kinds = [node.op_type for node in model.graph]
    assert ("LayerNormalization" in kinds, "Gelu" in kinds) == (True, opset >= 20)
    layers = weighted_layers(model)
    assert [(layer.n, layer.k) for layer in layers] == [(32, 32)] * 3 + [(64, 32), (32, 64), (8, 32)]
    assert len({layer.layer for layer in layers}) == len(layers)
    assert str(checkpoint.arch) == "ONNX file model.onnx (tf2onnx 1.16.1, opset 17)"
    assert checkpoint.preprocessing.sample_shape == (6, 32)
    assert not checkpoint.preprocessing.is_declared


def test_torchscript_s_layers_have_their_modules_names(tmp_path: Path) -> None:
    path = onnx_files.write_by_torchscript(tmp_path / "vit.onnx", tiny_models.vit(), torch.zeros(1, 3, 32, 32))
    answers(path, tiny_models.images(3))
    model = converted(read(path))
    blocks = [f"blocks.0.{name}" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert [layer.layer for layer in weighted_layers(model)] == ["patch_embed.proj", *blocks, "head"]
    assert all(layer.macs > 0 for layer in weighted_layers(model))
    assert [str(output.shape) for output in model.graph.outputs] == ["[batch,64]"]


def test_a_batch_that_is_baked_in_is_kept_and_said(tmp_path: Path) -> None:
    path = tmp_path / "vit.onnx"
    onnx_files.write_by_torchscript(path, tiny_models.vit(), torch.zeros(2, 3, 32, 32), free=False)
    checkpoint = read(path)
    assert checkpoint.remarks == ("batch 2 is baked into the file: it is built for that alone",)
    assert checkpoint.given is not None
    given, two = checkpoint.given.model, BatchRange(minimum=2, optimum=2, maximum=2)
    assert batch_of_file(given, DYNAMIC, usual=True, place="here") == two
    assert batch_of_file(given, two, usual=False, place="here") == two
    with pytest.raises(
        GpusqError, match="the file takes batch 2 alone, which is baked into it, and 1:8:32 was asked for"
    ):
        batch_of_file(given, DYNAMIC, usual=False, place="here")
    assert str(converted(checkpoint, two).graph.outputs[0].shape) == "[2,64]"


def test_a_batch_that_is_fixed_for_nothing_is_freed(tmp_path: Path) -> None:
    path = onnx_files.write_text(tmp_path / "m.onnx", PLAIN.replace("N", "1"), w=WEIGHT)
    checkpoint = read(path)
    assert checkpoint.remarks == ()
    assert str(converted(checkpoint).graph.outputs[0].shape) == "[batch,5]"
    eight = BatchRange(minimum=8, optimum=8, maximum=8)
    assert str(converted(checkpoint, eight).graph.outputs[0].shape) == "[8,5]"


def test_names_can_be_chosen(tmp_path: Path) -> None:
    checkpoint = read(onnx_files.write_text(tmp_path / "m.onnx", PLAIN, w=WEIGHT))
    model = converted(checkpoint, names=Names(input="features", outputs=("scores",)))
    assert (model.graph.inputs[0].name, model.graph.outputs[0].name) == ("features", "scores")
    with pytest.raises(GpusqError, match="not a name"):
        converted(checkpoint, names=Names(input="a b"))


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    text = HEAD + "m (float16[N, 4] x) => (float16[N, 5] y) { y = MatMul(x, w) }"
    path = onnx_files.write_text(tmp_path / "m.onnx", text, w=WEIGHT.astype(np.float16))
    checkpoint = read(path)
    assert checkpoint.given is not None
    assert checkpoint.given.half
    assert checkpoint.remarks == ("its FLOAT16 weights are computed with in float32",)
    feed = np.random.default_rng(0).standard_normal((2, 4), dtype=np.float32)
    got = tiny_models.run_model(converted(checkpoint), {"x": feed})["y"]
    np.testing.assert_allclose(got, feed @ WEIGHT.astype(np.float16).astype(np.float32), rtol=1e-5)


def test_functions_are_inlined_and_initializers_among_the_inputs_left_out(tmp_path: Path) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>\n'
        "m (float[N, 4] x, float[4, 5] w) => (float[N, 5] y) { y = local.twice (x, w) }\n"
        '<domain: "local", opset_import: ["" : 17]> twice (a, b) => (c) { d = MatMul(a, b) c = Add(d, d) }'
    )
    path = onnx_files.write_text(tmp_path / "m.onnx", text, w=WEIGHT)
    answers(path, np.ones((2, 4), dtype=np.float32))


class Squeezes(torch.nn.Module):
    """What torch's exporter writes an If for: the axis may be 1, for all that it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = torch.nn.Conv2d(3, 8, (8, 1)), torch.nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.head(self.mix(image).squeeze(2).transpose(1, 2))
        return rows


def test_a_squeeze_that_was_exported_with_open_sizes_is_no_branch(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    torch.manual_seed(0)
    onnx_files.write_by_torchscript(path, Squeezes(), torch.zeros(2, 3, 8, 6), open_sizes=True)
    assert "If" in {node.op_type for node in onnx.load(path).graph.node}
    feed = np.random.default_rng(0).standard_normal((4, 3, 8, 6), dtype=np.float32)
    declared = Preprocessing(channels=3, height=8, width=6, mean=(0.0,) * 3, std=(1.0,) * 3, origin="test")
    model = converted(read(path, lambda: declared))
    assert [layer.layer for layer in weighted_layers(model)] == ["mix", "head"]
    (expected,) = onnx_files.run_file(path, feed)
    (got,) = tiny_models.run_model(model, {model.graph.inputs[0].name: feed}).values()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


SIDES = HEAD + "m (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu(x) }"


def test_a_size_that_the_file_leaves_open_is_that_of_the_samples_or_refused(tmp_path: Path) -> None:
    path = onnx_files.write_text(tmp_path / "m.onnx", SIDES)
    zeros, ones = (0.0,) * 3, (1.0,) * 3
    eight = Preprocessing(channels=3, height=8, width=8, mean=zeros, std=ones, origin="test")
    assert str(converted(read(path, lambda: eight)).graph.outputs[0].shape) == "[batch,3,8,8]"
    with pytest.raises(GpusqError, match="leaves the size of a sample open"):
        read(path)
    four = Preprocessing(channels=4, height=8, width=8, mean=(0.0,) * 4, std=(1.0,) * 4, origin="test")
    with pytest.raises(GpusqError, match=r"its input is \[3, -1, -1\], the samples are \[4, 8, 8\]: test"):
        read(path, lambda: four)


def test_a_preprocessor_beside_the_file_says_how_images_become_its_input(tmp_path: Path) -> None:
    path = onnx_files.write_text(tmp_path / "m.onnx", SIDES)
    said = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": 8, "width": 6},
        "resample": 3,
    }
    beside = tmp_path / "preprocessor_config.json"
    beside.write_text(json.dumps(said))
    found = read(path).preprocessing
    assert (found.sample_shape, found.mean, found.interpolation) == ((3, 8, 6), (0.1, 0.2, 0.3), "bicubic")
    assert found.is_declared
    beside.write_text(json.dumps({"image_mean": [0.5]}))
    with pytest.raises(GpusqError, match="it lacks image_std"):
        read(path)


def with_loop(path: Path) -> None:
    text = """m (float[N, 4] x) => (float[N, 4] y) {
      t = ReduceMax<keepdims = 0>(x)
      b = Cast<to = 9>(t)
      y = If (b) <
        then_branch = t () => (float[N, 4] u) { u = Relu(x) }, else_branch = e () => (float[N, 4] v) { v = Neg(x) }
      >
    }"""
    onnx_files.write_text(path, HEAD + text)


def without_data(path: Path) -> None:
    proto = onnx.load(onnx_files.write_text(path, PLAIN, w=np.ones((4, 2000), dtype=np.float32)))
    onnx.save(proto, path, save_as_external_data=True, location="m.data")
    path.with_name("m.data").unlink()


def foreign(path: Path) -> None:
    text = "m (float[N, 4] x) => (float[N, 4] y) { y = com.microsoft.FastGelu (x) }"
    onnx_files.write_text(path, f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>\n{text}')


def damaged(path: Path) -> None:
    path.write_bytes(b"no protobuf at all")


def text_of(text: str, **constants: npt.NDArray[Any]) -> Callable[[Path], object]:
    return lambda path: onnx_files.write_text(path, HEAD + text, **constants)


QUANTISED = "m (float[N, 4] x) => (float[N, 4] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
GRID: dict[str, npt.NDArray[Any]] = {"s": np.array(0.1, dtype=np.float32), "z": np.array(0, dtype=np.int8)}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (text_of(QUANTISED, **GRID), "quantised already: it has 1 QuantizeLinear, 1 DequantizeLinear"),
        (with_loop, "the graph branches or loops on data: it has If"),
        (without_data, "the file of its external data is missing: m.data"),
        (
            text_of("m (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { y = Add(x, z) }"),
            "the graph takes 2 inputs: x",
        ),
        (
            text_of("m (int64[N, 4] x) => (float[N, 4] y) { y = Cast<to = 1>(x) }"),
            "input x is INT64, not float32 or half precision",
        ),
        (text_of("m (float[N] x) => (float[N] y) { y = Relu(x) }"), "not an axis of samples and more"),
        (foreign, "operators outside the ONNX standard: com.microsoft.FastGelu"),
        (
            text_of("m (float[N, 4] x) => (float[N, 4] y) { z = Erfc(x) y = Erfc(z) }"),
            r"no operator of ONNX opset \d+: Erfc \(2 nodes, such as z\)",
        ),
        (
            text_of("m (float[N, 4] x) => (seq(float[N, 4]) y) { y = SequenceConstruct(x) }"),
            "sequences or optional values",
        ),
        (damaged, "not an ONNX model, or damaged"),
    ],
)
def test_what_no_build_starts_from_is_refused(tmp_path: Path, write: Callable[[Path], object], said: str) -> None:
    path = tmp_path / "m.onnx"
    write(path)
    with pytest.raises(GpusqError, match=said):
        read(path)
