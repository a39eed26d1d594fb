from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpusq_deploy.artifacts.receipt import EngineLayer
from gpusq_deploy.engines.layer_classes import sparse_tactic, totals
from gpusq_deploy.engines.layer_list_parser import (
    first_profile,
    layer_from_line,
    layers_from_inspector,
    layers_from_log,
)
from gpusq_deploy.errors import GpusqError

DATA = Path(__file__).parent / "data"
EMPTY = "Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: "


def stored(name: str) -> tuple[EngineLayer, ...]:
    return layers_from_log(["noise", (DATA / name).read_text(encoding="utf-8"), "more noise"])


def test_every_stored_line_becomes_a_layer() -> None:
    layers = stored("rtx-1.7-int8-vit.log")
    assert [layer.kind for layer in layers[:5]] == ["shape_call", "kgen", "correlation", "kgen", "gemm"]
    assert len(layers) == 10


def test_a_gemm_is_read_whole() -> None:
    gemm = stored("rtx-1.7-int8-vit.log")[4]
    assert gemm.name == "node_MatMul_12_myl0_4"
    assert [(tensor.shape, tensor.dtype) for tensor in gemm.inputs] == [((-1, 384), "Int8")]
    assert [(tensor.shape, tensor.dtype) for tensor in gemm.constants] == [
        ((384, 1152), "Int8"),
        ((1,), "Float"),
        ((1,), "Float"),
    ]
    assert gemm.outputs[0].dtype == "Half"
    assert gemm.tactic == "__myelin_CASK_STUB"
    assert gemm.onnx_nodes == ("node_MatMul_12", "a0_dq", "w0_dq")


def test_names_may_hold_commas_brackets_and_braces() -> None:
    odd = stored("rtx-1.7-mixed.log")[-1]
    assert odd.inputs[0].name == "in, [x] { y }"
    assert odd.inputs[0].dtype == "Half"
    assert odd.onnx_nodes == ("/blocks.0/[attn], q {proj}/Mat Mul", "bias")


def test_several_inputs_and_stream_events_are_read() -> None:
    by_name = {layer.name: layer for layer in stored("rtx-1.7-mixed.log")}
    assert len(by_name["__myl_FcAdd_myl0_10"].inputs) == 3
    assert by_name["__mye4213_myl0_4"].kind == "wait"


@pytest.mark.parametrize(
    "metadata",
    ["[ONNX Layer: a]\x1f[ONNX Layer: b]", "[ONNX Layer: a]\x1e[ONNX Layer: b]", "[ONNX Layer: a][ONNX Layer: b]"],
)
def test_metadata_is_split_however_it_is_joined(metadata: str) -> None:
    assert layer_from_line(f"Name: x, LayerType: kgen, {EMPTY}{metadata}").onnx_nodes == ("a", "b")


def test_a_loops_jump_is_a_layer_and_no_kernel() -> None:
    """Seen in TensorRT-RTX 1.7 for an LSTM: its targets stand where other layers have an event."""
    counter = "{ Name: i, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Int32, Format: (Linear) Row }"
    line = (
        f"Name: clp_myl0_285, LayerType: cjmp, Inputs: [ {counter}], Constants: [], Outputs: [], TacticName: , "
        "StreamId: 0, JumpTargetThen: start^bb_myl0_94, JumpTargetElse: end_myl0_286, Metadata: [ONNX Layer: loop]"
    )
    layer = layer_from_line(line)
    assert (layer.kind, layer.onnx_nodes, [tensor.dtype for tensor in layer.inputs]) == ("cjmp", ("loop",), ["Int32"])
    assert totals([layer]).kernels == 0


def test_unknown_metadata_is_kept() -> None:
    assert layer_from_line(f"Name: x, LayerType: kgen, {EMPTY}[Other: a]").onnx_nodes == ("[Other: a]",)


def test_a_layer_without_metadata_is_read() -> None:
    line = f"Name: x, LayerType: kgen, {EMPTY}".removesuffix(", Metadata: ")
    assert layer_from_line(line).onnx_nodes == ()


@pytest.mark.parametrize(
    "line",
    [
        "Name: x, LayerType: kgen",
        "something new",
        f"Name: x, LayerType: kgen, {EMPTY.replace('Inputs: []', 'Inputs: [ { Nom: y }]')}",
    ],
)
def test_a_line_that_cant_be_read_is_an_error_that_shows_it(line: str) -> None:
    with pytest.raises(GpusqError, match="can't read") as caught:
        layers_from_log([f"Layers:\nName: x, LayerType: kgen, {EMPTY}\n{line}\n\nI/O Tensors:"])
    assert caught.value.place == line


@pytest.mark.parametrize("messages", [[], ["Layers:\n", "Layers:\n"]])
def test_one_list_is_needed(messages: list[str]) -> None:
    with pytest.raises(GpusqError, match="layer lists, not one"):
        layers_from_log(messages)


def inspected(**fields: Any) -> EngineLayer:
    layer: dict[str, Any] = {"Name": "mm", "LayerType": "gemm", "Inputs": [], "Outputs": [], **fields}
    return layers_from_inspector(json.dumps({"Layers": [layer], "Bindings": ["x"]}))[0]


@pytest.mark.parametrize(
    ("tensor", "dtype"),
    [
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}, "Int8"),
        ({"Format/Datatype": "Row major linear FP32"}, "Float"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}, "Half"),
        ({"Format/Datatype": "Half"}, "Half"),
        ({"Format": "Row major linear", "Datatype": "BFloat16"}, "BFloat16"),
    ],
)
def test_types_of_tensorrt_10_and_11(tensor: dict[str, str], dtype: str) -> None:
    layer = inspected(Inputs=[{"Name": "x", "Dimensions": [8, 64], "Location": "Device", **tensor}])
    assert layer.inputs[0].dtype == dtype
    assert layer.inputs[0].shape == (8, 64)


def test_a_kernels_weights_become_a_constant() -> None:
    layer = inspected(
        LayerType="CaskConvolution",
        Weights={"Type": "Int8", "Count": 131072},
        Bias={"Type": "Float", "Count": 256},
        OutMaps=256,
        TacticName="sm80_xmma_fprop",
        Metadata="[ONNX Layer: conv]\x1f[ONNX Layer: relu]",
    )
    assert [(tensor.shape, tensor.dtype) for tensor in layer.constants] == [((256, 512), "Int8")]
    assert layer.onnx_nodes == ("conv", "relu")


@pytest.mark.parametrize("text", ["not json", "[]", '{"Layers": 3}', '{"Layers": ["only a name"]}'])
def test_an_inspector_answer_without_details_is_an_error(text: str) -> None:
    with pytest.raises(GpusqError, match="inspector"):
        layers_from_inspector(text)


TENSORRT_10 = """{"Layers": [{"Name": "fc1 + gelu", "LayerType": "gemm", "Inputs": [{"Name": "x", "Location": "Device",
"Dimensions": [8, 257, 384], "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
"Outputs": [{"Name": "y", "Location": "Device", "Dimensions": [8, 257, 1536],
"Format/Datatype": "Row major linear FP16"}],
"Constants": [{"Name": "w", "Dimensions": [384, 1536], "Format/Datatype": "Int8"}], "HasSparseWeights": 1,
"TacticName": "sm80_xmma_sparse_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x128_stage3_warpsize2x2x1_sptensor16x8x64_gelu",
"StreamId": 0, "Metadata": "[ONNX Layer: fc1]"}], "Bindings": ["x", "y"]}"""
TENSORRT_11 = """{"Layers": [{"Name": "fc1 + gelu", "LayerType": "gemm", "Inputs": [{"Name": "x", "Location": "Device",
"Dimensions": [8, 257, 384], "Format": "Thirty-two wide channel vectorized row major", "Datatype": "Int8"}],
"Outputs": [{"Name": "y", "Location": "Device", "Dimensions": [8, 257, 1536], "Format": "Row major linear",
"Datatype": "Half"}], "Constants": [{"Name": "w", "Dimensions": [384, 1536], "Datatype": "Int8"}],
"TacticName": "sm80_xmma_sparse_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x128_stage3_warpsize2x2x1_sptensor16x8x64_gelu",
"StreamId": 0, "Metadata": "[ONNX Layer: fc1]"}], "I/O Tensors": [{"Name": "x"}, {"Name": "y"}]}"""


def test_both_forms_of_the_inspector_say_the_same() -> None:
    ten, eleven = layers_from_inspector(TENSORRT_10), layers_from_inspector(TENSORRT_11)
    assert ten == eleven
    (layer,) = ten
    assert [tensor.dtype for tensor in (*layer.inputs, *layer.outputs, *layer.constants)] == ["Int8", "Half", "Int8"]
    assert sparse_tactic(layer.tactic)[0] == "yes"


@pytest.mark.parametrize("text", [TENSORRT_10, TENSORRT_11])
def test_later_profiles_are_left_out(text: str) -> None:
    found = layers_from_inspector(
        text.replace('"Layers": [', '"Layers": [{"Name": "fc1 [profile 1]", "LayerType": "gemm"}, ')
    )
    assert [layer.name for layer in first_profile(found, 2)] == ["fc1 + gelu"]


def named(*names: str) -> list[EngineLayer]:
    return [layer_from_line(f"Name: {name}, LayerType: kgen, {EMPTY}") for name in names]


def test_graphs_are_dealt_out_to_profiles() -> None:
    layers = named("a_myl0_0", "b_myl1_0", "x", "a_myl2_0", "b [profile 1]_myl3_0")
    assert [layer.name for layer in first_profile(layers, 2)] == ["a_myl0_0", "b_myl1_0", "x"]
    assert len(first_profile(named("a_myl0_0", "b_myl1_0"), 1)) == 2
    with pytest.raises(GpusqError, match="3 graphs can't be dealt out to 2 profiles"):
        first_profile(named("a_myl0_0", "b_myl1_0", "c_myl2_0"), 2)
