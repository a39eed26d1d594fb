"""Islands of float32: the graph computes what it did, FP16 around them, and nothing in them overflows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import planning
import pytest
import tiny_models

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.findings import lint
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.keep_fp32 import KeepFp32, keep_fp32
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.graph.provenance import is_kept
from gpusq_deploy.numerics.error import sqnr_db
from gpusq_deploy.quantize.fp16_overflow import fp16_overflow_in

# big and big2 reach a million; small reads big again, by way of a product that shrinks it.
TEXT = """g (float[B,8] x) => (float[B,8] y) {
    [up] big = Mul(x, million)
    [add] big2 = Add(big, x)
    [down] small = Mul(big2, shrink)
    [fc] z = MatMul(small, w)
    [last] y = Add(z, x)
}"""
RANDOM = np.random.default_rng(0)
CONSTANTS: dict[str, npt.NDArray[np.float32]] = {
    "million": np.array(1e6, np.float32),
    "shrink": np.array(1e-6, np.float32),
    "w": RANDOM.standard_normal((8, 8)).astype(np.float32),
}
FEEDS = {"x": RANDOM.uniform(0.5, 1.5, (4, 8)).astype(np.float32)}


def model(text: str = TEXT) -> ir.Model:
    return tiny_models.graph(text, **{name: value for name, value in CONSTANTS.items() if name in text})


def kept(graph: ir.Graph) -> list[str]:
    return [str(node.name) for node in graph if is_kept(node)]


@pytest.mark.parametrize("constants", [False, True])
def test_the_casts_alone_change_nothing(constants: bool) -> None:
    before = model()
    after = run_passes(before, [KeepFp32(("big", "big2"), constants=constants)])
    expected = tiny_models.run_model(before, FEEDS)["y"]
    np.testing.assert_array_equal(tiny_models.run_model(after, FEEDS)["y"], expected)
    assert KeepFp32(("big", "big2"), constants=constants).run(after) == 0


def test_what_overflows_in_fp16_does_not_in_an_island() -> None:
    expected = tiny_models.run_model(model(), FEEDS)["y"]
    after = run_passes(model(), [KeepFp32(("big", "big2"), constants=True), CastToFloatType("fp16")])
    assert sqnr_db(expected, tiny_models.run_model(after, FEEDS)["y"]) > 60
    types = {str(value.name): value.dtype for node in after.graph for value in node.outputs}
    assert (types["big"], types["big2"], types["z"]) == (ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.FLOAT16)
    assert kept(after.graph) == ["up", "add", "down"]
    assert after.graph.initializers["million"].dtype == ir.DataType.FLOAT
    assert after.graph.initializers["w"].dtype == ir.DataType.FLOAT16
    # One cast on each shore: the graph's input is float32, and is read as it is.
    casts = [node for node in after.graph if node.op_type == "Cast"]
    assert len(casts) == 3
    assert list(lint(after)) == []


def test_a_constant_alone_makes_an_island() -> None:
    text = "g (float[B,8] x) => (float[B,8] y) { [up] z = Mul(x, million)\n [down] y = Mul(z, shrink) }"
    with pytest.raises(GpusqError, match="does not fit fp16"):
        run_passes(model(text), [CastToFloatType("fp16")])
    after = run_passes(model(text), [KeepFp32((), constants=True), CastToFloatType("fp16")])
    assert kept(after.graph) == ["up"]


def test_a_constant_on_both_sides_becomes_two() -> None:
    text = "g (float[B,8] x) => (float[B,8] y) { [in] big = Mul(x, shrink)\n [out] y = Mul(big, shrink)\n }"
    after = run_passes(model(text), [KeepFp32(("x",)), CastToFloatType("fp16")])
    assert kept(after.graph) == ["in"]
    types = {name: value.dtype for name, value in after.graph.initializers.items() if name.startswith("shrink")}
    assert types == {"shrink": ir.DataType.FLOAT16, "shrink_float32": ir.DataType.FLOAT}


def quantized(ranges: dict[str, float], wide: tuple[str, ...]) -> ir.Model:
    """big goes into an INT8 layer."""
    text = """g (float[B,8] x) => (float[B,8] y) {
        [up] big = Mul(x, million)
        [fc] z = MatMul(big, w)
        [down] y = Mul(z, shrink)
    }"""
    plan = planning.plan_for(model(text), planning.table(ranges), float_type="fp32")
    return run_passes(model(text), [Quantize(plan), KeepFp32(wide, constants=True), CastToFloatType("fp16")])


@pytest.mark.parametrize("wide", [("big", "z"), ("z",)])
def test_no_cast_comes_between_a_product_and_its_dequantised_operands(wide: tuple[str, ...]) -> None:
    """With ("z",) the input is wide all the same: it is made of a constant of a million."""
    after = quantized({"big": 2e6}, wide)
    product = next(node for node in after.graph if node.op_type == "MatMul")
    makers = [value.producer() for value in product.inputs if value is not None]
    assert [maker.op_type for maker in makers if maker is not None] == ["DequantizeLinear"] * 2
    assert {value.dtype for value in (*product.inputs, *product.outputs) if value is not None} == {ir.DataType.FLOAT}
    expected = FEEDS["x"] @ CONSTANTS["w"]
    assert sqnr_db(expected, tiny_models.run_model(after, FEEDS)["y"]) > 30
    assert list(lint(after)) == []


def test_a_tensor_that_is_not_there_is_an_error() -> None:
    with pytest.raises(GpusqError, match="doesn't have") as caught:
        run_passes(model(), [KeepFp32(("gone",))])
    assert "gone" in str(caught.value.place)


def test_a_plan_without_wide_tensors_keeps_nothing() -> None:
    plan = planning.plan_for(model(), planning.table({"small": 2.0}), float_type="fp16")
    narrow = tiny_models.graph("g (float[B,8] x) => (float[B,8] y) { [fc] y = MatMul(x, w) }", w=CONSTANTS["w"])
    assert keep_fp32(plan).run(narrow) == 0


MASKED = "g (float[B,4] x) => (float[B,4] y) { [mask] z = Add(x, m)\n [probabilities] y = Softmax<axis = 1>(z) }"


def test_a_mask_of_float32s_largest_number_makes_no_island() -> None:
    mask = np.array([0, -1, 0, -1], np.float32) * np.finfo(np.float32).max
    before = tiny_models.graph(MASKED, m=mask)
    feeds = {"x": RANDOM.standard_normal((3, 4)).astype(np.float32)}
    expected = tiny_models.run_model(before, feeds)["y"]
    sums = tiny_models.run_model(
        tiny_models.graph("g (float[B,4] x) => (float[B,4] z) { z = Add(x, m) }", m=mask), feeds
    )
    wide = fp16_overflow_in(before, {"z": (float(np.max(np.abs(sums["z"]))), "seen")}, looked=True)
    assert not wide.tensors
    after = run_passes(before, [KeepFp32((), constants=True), CastToFloatType("fp16")])
    assert kept(after.graph) == []
    assert sqnr_db(expected, tiny_models.run_model(after, feeds)["y"]) > 50
