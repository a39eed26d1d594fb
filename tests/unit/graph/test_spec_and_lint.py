"""Every fault that the spec and the lint know, planted in a good graph and found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import planning
import pytest
import tiny_models

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.findings import lint
from gpusq_deploy.graph.spec import check_graph, graph_faults

GOOD = """g (float[B,8] x) => (float[B,4] y) {
  [q] xq = QuantizeLinear(x, s, z)
  [d] xd = DequantizeLinear(xq, s, z)
  [wd] v = DequantizeLinear<axis = 1>(w8, ws, wz)
  [fc] y = MatMul(xd, v)
}"""
Constants = dict[str, Any]


def constants() -> Constants:
    return {
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.int8),
        "w8": np.ones((8, 4), np.int8),
        "ws": np.full(4, 0.1, np.float32),
        "wz": np.zeros(4, np.int8),
    }


def faults(text: str = GOOD, **changes: Any) -> list[GpusqError]:
    return list(graph_faults(tiny_models.graph(text, **{**constants(), **changes})))


def rules(text: str, **more: Any) -> list[str]:
    used = {name: value for name, value in {**constants(), **more}.items() if f"{name}" in text}
    return [finding.rule for finding in lint(tiny_models.graph(text, **used))]


def test_a_good_graph_has_no_faults_and_no_findings() -> None:
    assert faults() == []
    assert rules(GOOD) == []
    check_graph(tiny_models.graph(GOOD, **constants()))


@pytest.mark.slow
def test_what_the_passes_make_has_no_findings(quantized: planning.Quantized) -> None:
    assert list(lint(quantized.before)) == []
    assert list(lint(quantized.after)) == []


@pytest.mark.parametrize("value", [0.0, -0.1, np.nan, np.inf])
@pytest.mark.parametrize(("name", "nodes"), [("s", ["q", "d"]), ("ws", ["wd"])])
def test_a_scale_that_is_not_positive_and_finite_is_found(name: str, nodes: list[str], value: float) -> None:
    scale = np.array(constants()[name])
    scale.reshape(-1)[-1] = value
    changed: Constants = {name: scale}
    found = faults(**changed)
    assert [fault.place for fault in found] == [f"node {node}" for node in nodes]
    assert all("not positive and finite" in fault.what for fault in found)


def test_a_half_precision_scale_that_vanished_is_found() -> None:
    found = faults(ws=np.array([0.1, 0, 0.1, 0.1], ml_dtypes.bfloat16).astype(np.float32))
    assert [fault.place for fault in found] == ["node wd"]


@pytest.mark.parametrize("zero", [np.array(1, np.int8), np.array(-128, np.int8), np.array(0, np.uint8)])
def test_a_zero_point_that_is_not_int8_zero_is_found(zero: Any) -> None:
    found = faults(z=zero)
    assert [fault.place for fault in found] == ["node q", "node d"]
    assert all("zero point" in fault.what for fault in found)


def test_one_zero_point_of_a_channel_that_is_not_zero_is_found() -> None:
    assert [fault.place for fault in faults(wz=np.array([0, 0, 3, 0], np.int8))] == ["node wd"]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_wrong_number_of_scales_is_found(count: int) -> None:
    found = faults(ws=np.full(count, 0.1, np.float32), wz=np.zeros(count, np.int8))
    assert [fault.what for fault in found] == [f"{count} scales for axis 1 of [8,4]"]


@pytest.mark.parametrize("axis", [0, 2, -3])
def test_an_axis_that_is_another_or_none_is_found(axis: int) -> None:
    assert [fault.place for fault in faults(GOOD.replace("axis = 1", f"axis = {axis}"))] == ["node wd"]


def test_a_vector_with_scales_on_an_axis_that_it_does_not_have_is_found() -> None:
    text = "g (float[8] x) => (float[8] y) { [q] q8 = QuantizeLinear(x, s) [d] y = DequantizeLinear(q8, s) }"
    found = list(graph_faults(tiny_models.graph(text, s=np.ones(8, np.float32))))
    assert [fault.place for fault in found] == ["node q", "node d"]


def test_a_scale_that_is_computed_or_missing_is_found() -> None:
    text = (
        "g (float[B,8] x, float s) => (float[B,8] y) { [q] q8 = QuantizeLinear(x, s) [d] y = DequantizeLinear(q8, s) }"
    )
    found = list(graph_faults(tiny_models.graph(text)))
    assert [fault.what for fault in found if "constant" in fault.what] == ["the scale is not a constant"] * 2
    model = tiny_models.graph(GOOD, **constants())
    for node in list(model.graph)[:2]:
        node.resize_inputs(1)
    assert [fault.place for fault in graph_faults(model) if "scale is not" in fault.what] == ["node q", "node d"]


@pytest.mark.parametrize(
    ("reader", "what"),
    [
        ("[d] xd = Cast<to = 1>(xq)", "its output goes to Cast"),
        ("[d] xd = DequantizeLinear(xq, s2, z)", "another scale"),
        ("[d] xd = DequantizeLinear(other, s, z)", "nothing reads"),
    ],
)
def test_a_quantize_without_its_dequantize_is_found(reader: str, what: str) -> None:
    text = GOOD.replace("[d] xd = DequantizeLinear(xq, s, z)", reader)
    more = {"s2": np.array(0.2, np.float32)} if "s2" in text else {}
    more |= {"other": np.ones((1, 8), np.int8)} if "other" in text else {}
    assert any(what in fault.what and fault.place == "node q" for fault in faults(text, **more))


def test_equal_scales_under_two_names_are_a_pair() -> None:
    text = GOOD.replace("[d] xd = DequantizeLinear(xq, s, z)", "[d] xd = DequantizeLinear(xq, s2, z)")
    assert faults(text, s2=np.array(0.1, np.float32)) == []


def change_names(model: ir.Model) -> None:
    model.graph[1].name = "q"


def change_order(model: ir.Model) -> None:
    last = model.graph[3]
    model.graph.remove(last)
    model.graph.insert_before(model.graph[0], last)


def change_definition(model: ir.Model) -> None:
    model.graph[3].outputs[0].name = "xd"


@pytest.mark.parametrize(
    ("change", "what"),
    [(change_names, "one name"), (change_order, "before it is defined"), (change_definition, "a second time")],
)
def test_names_and_order_are_checked(change: Callable[[ir.Model], None], what: str) -> None:
    model = tiny_models.graph(GOOD, **constants())
    change(model)
    assert any(what in fault.what for fault in graph_faults(model))
    with pytest.raises(GpusqError, match=what):
        check_graph(model)
    assert any(what in finding.what and finding.rule == "graph-invariant" for finding in lint(model))


@pytest.mark.parametrize(
    ("body", "which"),
    [
        ("[q] a = QuantizeLinear(x, s, z) [d] b = DequantizeLinear(a, s, z) [fc] y = MatMul(b, wf)", "input"),
        ("[wd] v = DequantizeLinear<axis = 1>(w8, ws, wz) [fc] y = MatMul(x, v)", "weight"),
    ],
)
def test_a_half_quantized_layer_is_found(body: str, which: str) -> None:
    text = f"g (float[B,8] x) => (float[B,4] y) {{ {body} }}"
    used = {name: value for name, value in constants().items() if f"{name}," in text or f"{name})" in text}
    if "wf" in text:
        used["wf"] = np.ones((8, 4), np.float32)
    (finding,) = lint(tiny_models.graph(text, **used))
    assert finding.rule == "half-quantized"
    assert finding.what.startswith(f"its {which} is quantised")
    assert "node fc" in finding.place


def test_a_quantized_softmax_is_found() -> None:
    text = """g (float[B,8] x) => (float[B,8] y) {
      [sm] p = Softmax(x)
      [q] a = QuantizeLinear(p, s, z)
      [d] y = DequantizeLinear(a, s, z)
    }"""
    (finding,) = lint(tiny_models.graph(text, s=np.array(0.1, np.float32), z=np.array(0, np.int8)))
    assert (finding.rule, finding.place) == ("softmax-quantized", "node q")


def test_a_float32_product_among_fp16_ones_is_found() -> None:
    text = """g (float16[B,8] x) => (float16[B,4] y, float[B,4] z) {
      [half] y = MatMul(x, w16)
      [c] x32 = Cast<to = 1>(x)
      [whole] z = MatMul(x32, w32)
    }"""
    weights: Constants = {"w16": np.ones((8, 4), np.float16), "w32": np.ones((8, 4), np.float32)}
    (finding,) = lint(tiny_models.graph(text, **weights))
    assert (finding.rule, finding.place) == ("mixed-remainder", "node whole")


def test_a_graph_of_nodes_without_names_is_linted() -> None:
    text = "g (float[B,8] x) => (float[B,8] y) { v = DequantizeLinear<axis = 1>(w8, ws) y = MatMul(x, v) }"
    model = tiny_models.graph(text, w8=np.ones((8, 8), np.int8), ws=np.ones(8, np.float32))
    assert [finding.rule for finding in lint(model)] == ["half-quantized"]


@pytest.mark.parametrize("text", ["[fc] y = MatMul(x)", "[c] y = Conv(x)", "[q] y = QuantizeLinear(x)"])
def test_nodes_that_lack_inputs_do_not_stop_the_lint(text: str) -> None:
    list(
        lint(
            ir.from_onnx_text(
                f'<ir_version: 10, opset_import: ["" : 20]>\ng (float[B,8] x) => (float[B,8] y) {{ {text} }}'
            )
        )
    )


BLOCKED = """g (float[B,64] x) => (float[B,4] y) {
  [wd] v = DequantizeLinear<axis = 0, block_size = 32>(w4, bs)
  [fc] y = MatMul(x, v)
}"""


def blocked(text: str = BLOCKED, *, opset: int = 21, **changes: Any) -> ir.Model:
    values = {"w4": np.ones((64, 4), ml_dtypes.int4), "bs": np.full((2, 4), 0.1, np.float32), **changes}
    model = tiny_models.graph(text, **values)
    model.graph.opset_imports[""] = opset
    return model


def test_int4_weights_in_whole_blocks_are_sound() -> None:
    assert list(graph_faults(blocked())) == []
    assert list(lint(blocked())) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bs": np.full((3, 4), 0.1, np.float32)}, "scales [3, 4] for blocks of 32"),
        ({"bs": np.zeros((2, 4), np.float32)}, "not positive and finite"),
        ({"w4": np.ones((48, 4), ml_dtypes.int4)}, "not made of blocks of 32"),
        ({"opset": 20}, "in opset 20"),
    ],
)
def test_bad_blocks_and_old_opsets_are_faults(changes: dict[str, Any], said: str) -> None:
    assert any(said in fault.what for fault in graph_faults(blocked(**changes)))


def test_a_quantised_input_in_front_of_int4_weights_is_a_finding() -> None:
    text = BLOCKED.replace("MatMul(x, v)", "MatMul(xd, v)").replace(
        "{\n", "{\n  [q] xq = QuantizeLinear(x, s, z)\n  [d] xd = DequantizeLinear(xq, s, z)\n", 1
    )
    model = blocked(text, s=np.array(0.1, np.float32), z=np.array(0, np.int8))
    assert [finding.rule for finding in lint(model)] == ["half-quantized"]


def test_a_quantised_residual_stream_is_a_finding() -> None:
    text = """g (float[B,8] x) => (float[B,8] y) {
      b = MatMul(x, w)
      [q] xq = QuantizeLinear(x, s, z)
      [d] xd = DequantizeLinear(xq, s, z)
      [sum] y = Add(xd, b)
    }"""
    assert rules(text, w=np.eye(8, dtype=np.float32)) == ["residual-quantized"]
