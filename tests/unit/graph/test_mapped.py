"""A mapped model is the model that onnx_ir loads, without its weights in memory; a damaged one is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_scratch
from gpusq_deploy.graph.findings import lint
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.mapped import MappedTensor, map_model, release
from gpusq_deploy.graph.values import array_of
from gpusq_deploy.sparsity.graph_check import graph_weights

RANDOM = np.random.default_rng(0)
BIG: dict[str, Any] = {
    "float32": RANDOM.standard_normal((64, 64), dtype=np.float32),
    "float16": RANDOM.standard_normal((64, 64)).astype(np.float16),
    "bfloat16": RANDOM.standard_normal((64, 64)).astype(ml_dtypes.bfloat16),
    "int8": RANDOM.integers(-128, 128, (64, 128)).astype(np.int8),
}
TEXT = "g (float[B,64] x) => (float[B,64] y) { [fc] y = MatMul(x, w) }"


def saved(path: Path, model: ir.Model, **external: Any) -> Path:
    ir.save(model, path, **external)
    return path


def product(weight: Any = None) -> ir.Model:
    return tiny_models.graph(TEXT, w=BIG["float32"] if weight is None else weight)


@pytest.mark.parametrize("name", BIG)
def test_every_type_is_mapped_and_holds_the_same_values(tmp_path: Path, name: str) -> None:
    model = tiny_models.graph(TEXT, w=BIG["float32"], other=BIG[name], small=np.ones(3, np.float32))
    mapped = map_model(saved(tmp_path / "m.onnx", model))
    value = mapped.graph.initializers["other"]
    assert isinstance(value.const_value, MappedTensor)
    assert (value.const_value.dtype, value.const_value.shape) == (ir.tensor(BIG[name]).dtype, BIG[name].shape)
    assert not array_of(value).flags.owndata
    for _ in range(2):  # what was let go is read again
        assert array_of(value).tobytes() == BIG[name].tobytes()
        release(value)
    small = mapped.graph.initializers["small"]
    assert not isinstance(small.const_value, MappedTensor)
    release(small)
    np.testing.assert_array_equal(array_of(small), np.ones(3))


@pytest.mark.slow
def test_an_exported_model_is_the_same_mapped_and_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path / "vit.onnx", tiny_models.exported_vit().model)
    loaded, mapped = ir.load(path), map_model(path)
    assert [str(node) for node in mapped.graph] == [str(node) for node in loaded.graph]
    assert weighted_layers(mapped) == weighted_layers(loaded)
    assert list(lint(mapped)) == list(lint(loaded))
    assert mapped.graph.initializers.keys() == loaded.graph.initializers.keys()
    for name, value in loaded.graph.initializers.items():
        np.testing.assert_array_equal(array_of(mapped.graph.initializers[name]), array_of(value))


def test_weights_in_constant_nodes_are_found(tmp_path: Path) -> None:
    model = product()
    (fc,) = model.graph
    constant = ir.node("Constant", [], {"value": ir.tensor(BIG["float32"])}, name="c")
    constant.outputs[0].name = "held"
    model.graph.insert_before(fc, constant)
    fc.replace_input_with(1, constant.outputs[0])
    mapped = map_model(saved(tmp_path / "m.onnx", model))
    (weight,) = graph_weights(mapped, weighted_layers(mapped))
    np.testing.assert_array_equal(weight.rows, BIG["float32"].T)
    assert isinstance(mapped.graph.initializers["held"].const_value, MappedTensor)


def test_external_data_is_mapped_too(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", product(), external_data="weights.bin")
    (tmp_path / "linked.onnx").symlink_to(path)
    os.link(path, tmp_path / "hard.onnx")
    for name in ("m.onnx", "linked.onnx", "hard.onnx"):
        value = map_model(tmp_path / name).graph.initializers["w"]
        assert isinstance(value.const_value, MappedTensor)
        np.testing.assert_array_equal(array_of(value), BIG["float32"])


def test_external_data_that_is_missing_or_cut_short_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", product(), external_data="weights.bin")
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(GpusqError, match="16384 bytes") as caught:
        map_model(path)
    assert "tensor w" in str(caught.value.place)
    data.write_bytes(b"")
    with pytest.raises(GpusqError, match="empty"):
        map_model(path)
    data.unlink()
    with pytest.raises(GpusqError, match=r"missing: weights\.bin"):
        map_model(path)


@pytest.mark.parametrize("location", ["../outside.bin", "{absolute}"])
def test_external_data_outside_the_models_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = saved(folder / "m.onnx", product(), external_data="weights.bin")
    outside = (folder / "weights.bin").rename(tmp_path / "outside.bin")
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location.format(absolute=outside)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(GpusqError, match="outside the model's folder"):
        map_model(path)


def test_a_weight_whose_bytes_do_not_fit_its_shape_is_refused(tmp_path: Path) -> None:
    proto = ir.to_proto(product())
    proto.graph.initializer[0].dims[0] = 65
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(GpusqError, match=r"\[65, 64\] of FLOAT are 16640 bytes, not 16384"):
        map_model(tmp_path / "m.onnx")


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "whole.onnx", product()).read_bytes()
    path = tmp_path / "cut.onnx"
    cuts = {*range(0, 200, 7), *range(200, len(data), 997), *range(len(data) - 150, len(data), 7)}
    whole = 0
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        try:
            map_model(path)
        except GpusqError:
            continue
        # A cut between two fields of the outermost message leaves a valid, shorter one.
        onnx.ModelProto.FromString(data[:cut])
        whole += 1
    assert whole < 3


def test_flipped_bytes_give_a_model_or_an_error_of_ours(tmp_path: Path) -> None:
    data = bytearray(saved(tmp_path / "whole.onnx", product()).read_bytes())
    path = tmp_path / "flipped.onnx"
    places = [*range(min(len(data), 120)), *range(len(data) - 200, len(data))]
    refused = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place] ^= 0xFF
        path.write_bytes(flipped)
        try:
            map_model(path)
        except GpusqError:
            refused += 1
    assert refused > len(places) // 10


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a model at all, just a text", b"\xff" * 100])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(GpusqError) as caught:
        map_model(tmp_path / "m.onnx")
    assert caught.value.place
    with pytest.raises(GpusqError, match="no such file"):
        map_model(tmp_path / "none.onnx")


@pytest.mark.parametrize("order", ["reshape", "transpose, reshape", "dequantize, reshape", "reshape, transpose"])
def test_a_weight_behind_a_reshape_is_seen_as_its_product_sees_it(order: str) -> None:
    stored = np.arange(32).reshape(1, 4, 8).astype(np.int8 if "deq" in order else np.float32)
    steps = {
        "reshape": (stored, "v = Reshape(w, t)", [4, 8]),
        "transpose, reshape": (stored, "u = Transpose<perm = [0, 2, 1]>(w) [r] v = Reshape(u, t)", [0, -1]),
        "dequantize, reshape": (stored, "u = DequantizeLinear(w, s) [r] v = Reshape(u, t)", [-1, 8]),
        "reshape, transpose": (stored, "u = Reshape(w, t) [r] v = Transpose(u)", [4, 8]),
    }
    weight, text, target = steps[order]
    expected = weight.reshape(4, 8)
    if order == "transpose, reshape":
        expected, target = weight.transpose(0, 2, 1).reshape(8, 4), [8, -1]
    if order == "reshape, transpose":
        expected = expected.T
    k, n = expected.shape
    model = tiny_models.graph(
        f"g (float[B,{k}] x) => (float[B,{n}] y) {{ [a] {text} [fc] y = MatMul(x, v) }}",
        w=weight,
        t=np.array(target, np.int64),
        s=np.array(1, np.float32),
    )
    assert [layer.layer for layer in weighted_layers(model)] == []
    layers = weighted_layers(model, only_seen=True)
    (seen,) = graph_weights(model, layers)
    np.testing.assert_array_equal(seen.rows, expected.T)
    assert (layers[0].n, layers[0].k, layers[0].macs, seen.positions) == (n, k, n * k, 1)


def test_int4_weights_in_the_file_are_unpacked(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (128, 129)).astype(np.int8)
    text = """g (float[B,128] x) => (float[B,129] y) {
      w = DequantizeLinear<axis = 0, block_size = 64>(w4, s)
      y = MatMul(x, w)
    }"""
    model = tiny_models.graph(text, w4=codes.astype(ml_dtypes.int4), s=np.ones((2, 129), np.float32))
    model.opset_imports[""] = 21  # the first with block_size
    ir.save(model, tmp_path / "m.onnx")
    mapped = map_model(tmp_path / "m.onnx").graph.initializers["w4"]
    assert mapped.dtype == ir.DataType.INT4
    assert np.array_equal(array_of(mapped).astype(np.int8), codes)


def without_an_input(node: onnx.NodeProto) -> None:
    del node.input[1:]


def without_outputs(node: onnx.NodeProto) -> None:
    del node.output[:]


def with_an_attribute_of_another_type(node: onnx.NodeProto) -> None:
    node.op_type = "Transpose"
    del node.input[1:]
    node.attribute.add(name="perm", type=onnx.AttributeProto.STRING, s=b"text")


def of_an_unknown_operator(node: onnx.NodeProto) -> None:
    node.op_type = "MatMull"


@pytest.mark.parametrize(
    "damage", [without_an_input, without_outputs, with_an_attribute_of_another_type, of_an_unknown_operator]
)
def test_a_node_that_its_operator_forbids_is_refused(tmp_path: Path, damage: Any) -> None:
    proto = ir.to_proto(product())
    damage(proto.graph.node[0])
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(GpusqError, match="fc"):
        map_model(tmp_path / "m.onnx")


def test_what_is_written_is_let_go_of_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[B,64] x) => (float[B,64] y) { a = MatMul(x, w)\n b = MatMul(a, v)\n y = Add(b, small) }"
    weights = {"w": BIG["float32"], "v": BIG["float32"] + 1, "small": np.ones(64, np.float32)}
    model = map_model(saved(tmp_path / "m.onnx", tiny_models.graph(text, **weights)))
    told: list[str] = []

    def tell(tensor: MappedTensor) -> None:
        told.append(str(tensor.name))

    monkeypatch.setattr(MappedTensor, "release", tell)
    save_scratch(model, tmp_path / "scratch.onnx")
    assert told in (["w", "v"], ["v", "w"])
    monkeypatch.undo()
    again = map_model(tmp_path / "scratch.onnx").graph.initializers
    for name, array in weights.items():
        np.testing.assert_array_equal(array_of(again[name]), array)


@pytest.mark.parametrize("kind", ["STRING", "UNDEFINED"])
def test_a_weight_of_a_type_without_a_size_is_refused(tmp_path: Path, kind: str) -> None:
    proto = ir.to_proto(product())
    proto.graph.initializer[0].data_type = onnx.TensorProto.DataType.Value(kind)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(GpusqError, match=f"its type is {kind}, which has no size") as caught:
        map_model(tmp_path / "m.onnx")
    assert "tensor w" in str(caught.value.place)
