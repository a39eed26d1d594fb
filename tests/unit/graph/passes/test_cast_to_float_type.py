"""A strongly typed FP16 or BF16 graph: no float32 inside, and an answer close to the float32 one."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import planning
import pytest
import tiny_models

from gpusq_deploy.artifacts.calibration import CalibrationTable
from gpusq_deploy.artifacts.plan import FloatPrecision
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.findings import lint
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.graph.values import array_of
from gpusq_deploy.numerics.error import sqnr_db

TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def cast(model: ir.Model, precision: FloatPrecision = "fp16") -> ir.Model:
    return run_passes(model, [CastToFloatType(precision)])


def float32_inside(model: ir.Model) -> list[str]:
    """Names of float32 values that are neither an input nor an output of the graph."""
    border = {*model.graph.inputs, *model.graph.outputs}
    values = [*model.graph.initializers.values(), *(output for node in model.graph for output in node.outputs)]
    return [str(value.name) for value in values if value.dtype == ir.DataType.FLOAT and value not in border]


def declared_is_computed(model: ir.Model, feeds: dict[str, Any]) -> None:
    """ONNX Runtime agrees with every type that the graph declares, when each value becomes an output."""
    probe = model.clone()
    known = {str(value.name) for value in probe.graph.outputs}
    for node in list(probe.graph):
        for value in node.outputs:
            if value.name not in known and value.dtype is not None:
                probe.graph.outputs.append(value)
    answers = tiny_models.run_model(probe, feeds)
    for value in probe.graph.outputs:
        assert value.dtype is not None
        assert answers[str(value.name)].dtype == value.dtype.numpy(), value.name


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("int8", [False, True])
def test_no_float32_is_left_inside(ranges: CalibrationTable, precision: FloatPrecision, int8: bool) -> None:
    model = tiny_models.exported_vit().model
    plan = planning.plan_for(model, ranges, float_type=precision)
    after = run_passes(model, [*([Quantize(plan)] if int8 else []), CastToFloatType(precision)])
    assert float32_inside(after) == []
    assert [value.dtype for value in (*after.graph.inputs, *after.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert [str(value.name) for value in (*after.graph.inputs, *after.graph.outputs)] == ["input", "output"]
    assert list(lint(after)) == []


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_fp16_answers_close_to_float32(ranges: CalibrationTable, int8: bool) -> None:
    """FP16 keeps 11 bits, some 66 dB for one rounding: 45 dB leaves room for a block's dozen."""
    model = tiny_models.exported_vit().model
    plan = planning.plan_for(model, ranges, float_type="fp16")
    whole = run_passes(model, [Quantize(plan)]) if int8 else model
    feeds = {"input": tiny_models.images(4, seed=6)}
    expected = tiny_models.run_model(whole, feeds)["output"]
    got = tiny_models.run_model(cast(whole), feeds)["output"]
    assert got.dtype == np.float32
    assert sqnr_db(expected, got) > (28 if int8 else 45)


@pytest.mark.slow
def test_every_declared_type_is_the_type_that_onnx_runtime_computes(ranges: CalibrationTable) -> None:
    model = tiny_models.exported_vit().model
    plan = planning.plan_for(model, ranges, float_type="fp16")
    after = run_passes(model, [Quantize(plan), CastToFloatType("fp16")])
    declared_is_computed(after, {"input": tiny_models.images(2)})


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_second_run_changes_nothing(quantized: planning.Quantized, precision: FloatPrecision) -> None:
    once = cast(quantized.after, precision)
    before = ir.to_proto(once).SerializeToString(deterministic=True)
    assert CastToFloatType(precision).run(once) == 0
    assert ir.to_proto(once).SerializeToString(deterministic=True) == before


@pytest.mark.slow
def test_codes_belong_to_the_scales_that_are_stored(quantized: planning.Quantized) -> None:
    """Scales were rounded before the weights were divided by them: casting them is exact."""
    model = tiny_models.exported_vit().model
    plan = planning.plan_for(model, planning.measured(model), float_type="fp16")
    before = run_passes(model, [Quantize(plan)])
    after = cast(before)
    names = [name for name in before.graph.initializers if name.endswith("_scale")]
    assert names
    for name in names:
        stored = array_of(after.graph.initializers[name])
        assert stored.dtype == np.float16
        np.testing.assert_array_equal(stored.astype(np.float32), array_of(before.graph.initializers[name]))
    assert quantized.plan.float_type == "fp32"


def test_fp32_changes_nothing() -> None:
    model = tiny_models.graph("g (float[B,4] x) => (float[B,4] y) { [fc] h = MatMul(x, w) [r] y = Relu(h) }", w=W)
    assert CastToFloatType("fp32").run(model) == 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_constants_are_rounded_to_nearest_even(precision: FloatPrecision) -> None:
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1e-8, 65504, -0.0, 3.14159265], np.float32)
    model = tiny_models.graph("g (float[B,7] x) => (float[B,7] y) { [a] h = Add(x, b) [r] y = Relu(h) }", b=values)
    stored = array_of(cast(model, precision).graph.initializers["b"])
    expected = values.astype(np.float16 if precision == "fp16" else ml_dtypes.bfloat16)
    assert stored.dtype == expected.dtype
    np.testing.assert_array_equal(stored.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize(("precision", "value"), [("fp16", 65520.0), ("fp16", -7e4), ("bf16", 3.4e38)])
def test_a_constant_that_overflows_is_named(precision: FloatPrecision, value: float) -> None:
    model = tiny_models.graph(
        "g (float[B,2] x) => (float[B,2] y) { [a] h = Add(x, b) [r] y = Relu(h) }", b=np.array([1, value], np.float32)
    )
    with pytest.raises(GpusqError, match=f"does not fit {precision}") as caught:
        cast(model, precision)
    assert caught.value.place == "tensor b"
    assert f"{abs(value):.6g}" in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_masks_stand_in_for_infinity_becomes_the_types_largest_number(precision: FloatPrecision) -> None:
    mask = np.array([0, -1, 0, 1], np.float32) * np.finfo(np.float32).max
    after = cast(tiny_models.graph("g (float[B,4] x) => (float[B,4] y) { y = Add(x, m) }", m=mask), precision)
    stored = array_of(after.graph.initializers["m"])
    # In both types the largest number's bits lie just below infinity's.
    largest = np.array(np.inf, stored.dtype).view(np.uint16) - 1
    np.testing.assert_array_equal(stored[1::2].view(np.uint16), [largest | 0x8000, largest])
    np.testing.assert_array_equal(stored[::2].astype(np.float32), [0, 0])


def test_an_infinite_constant_stays_infinite() -> None:
    model = tiny_models.graph(
        "g (float[B,2] x) => (float[B,2] y) { [a] h = Add(x, b) [r] y = Relu(h) }",
        b=np.array([-np.inf, np.nan], np.float32),
    )
    stored = array_of(cast(model).graph.initializers["b"])
    assert stored[0] == -np.inf
    assert np.isnan(stored[1])


RESIZE = """g (float[B,1,2,2] x) => (float[B,1,4,4] y) {
  [r] h = Relu(x)
  [up] u = Resize<mode = "nearest">(h, , scales)
  [m] y = Mul(u, two)
}"""


def test_the_scales_of_a_resize_stay_float32() -> None:
    model = tiny_models.graph(RESIZE, scales=np.array([1, 1, 2, 2], np.float32), two=np.array(2, np.float32))
    after = cast(model)
    assert float32_inside(after) == ["scales"]
    assert array_of(after.graph.initializers["scales"]).dtype == np.float32
    assert CastToFloatType("fp16").run(after) == 0
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(
        tiny_models.run_model(after, {"x": x})["y"], 2 * x.repeat(2, axis=2).repeat(2, axis=3)
    )


def test_scales_that_also_are_a_factor_become_two_constants() -> None:
    """One constant, read by Resize as float32 and by Mul as data."""
    text = RESIZE.replace("Mul(u, two)", "Mul(u, scales)")
    model = tiny_models.graph(text, scales=np.array([1, 1, 2, 2], np.float32))
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    expected = tiny_models.run_model(model, {"x": x})["y"]
    np.testing.assert_array_equal(tiny_models.run_model(cast(model), {"x": x})["y"], expected)


def test_a_resize_whose_scales_are_computed_is_refused() -> None:
    text = """g (float[B,1,2,2] x, float[4] s) => (float[B,1,4,4] y) {
      [d] scales = Add(s, s)
      [r] h = Relu(x)
      [up] y = Resize<mode = "nearest">(h, , scales)
    }"""
    with pytest.raises(GpusqError, match="needs a float32 input") as caught:
        cast(tiny_models.graph(text))
    assert caught.value.place == "node up"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("fill", ["<value = float[1] {1.5}>", ""])
def test_filled_tensors_and_casts_follow(precision: FloatPrecision, fill: str) -> None:
    text = f"""g (float[B,4] x, int64[1] size, int64[B,4] index) => (float[B,4] y) {{
      [f] filled = ConstantOfShape{fill}(size)
      [c] number = Cast<to = 1>(index)
      [a] h = Add(x, filled)
      [b] y = Add(h, number)
    }}"""
    model = tiny_models.graph(text)
    after = cast(model, precision)
    assert float32_inside(after) == []
    if precision == "fp16":
        feeds = {"x": W, "size": np.array([4]), "index": np.arange(16).reshape(4, 4)}
        expected = tiny_models.run_model(model, feeds)["y"]
        np.testing.assert_allclose(tiny_models.run_model(after, feeds)["y"], expected, rtol=2e-3)
        declared_is_computed(after, feeds)


def test_an_integer_fill_and_an_integer_cast_stay() -> None:
    text = """g (float[B,4] x, int64[1] size) => (float[B,4] y, int64[B,4] z) {
      [f] filled = ConstantOfShape<value = int64[1] {3}>(size)
      [c] whole = Cast<to = 7>(x)
      [a] z = Add(whole, filled)
      [fc] y = MatMul(x, w)
    }"""
    after = cast(tiny_models.graph(text, w=W))
    feeds = {"x": 10 * W, "size": np.array([4])}
    assert tiny_models.run_model(after, feeds)["z"].dtype == np.int64


def test_an_input_that_several_nodes_read_is_cast_once() -> None:
    text = """g (float[B,4] x) => (float[B,4] y) {
      [one] a = MatMul(x, w)
      [two] b = Relu(x)
      [both] y = Add(a, x)
      [unused] c = Mul(x, b)
    }"""
    after = cast(tiny_models.graph(text, w=W))
    assert [node.name for node in after.graph if node.inputs[0] is after.graph.inputs[0]] == ["x_cast"]
    declared_is_computed(after, {"x": W})


def test_an_output_that_is_also_read_inside_keeps_its_name_and_type() -> None:
    text = """g (float[B,4] x) => (float[B,4] y, float[B,4] z) {
      [fc] y = MatMul(x, w)
      [r] z = Relu(y)
    }"""
    model = tiny_models.graph(text, w=W)
    after = cast(model)
    assert [(str(value.name), value.dtype) for value in after.graph.outputs] == [
        ("y", ir.DataType.FLOAT),
        ("z", ir.DataType.FLOAT),
    ]
    got, expected = (tiny_models.run_model(each, {"x": W}) for each in (after, model))
    for name in ("y", "z"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-2, atol=1e-2)
    relu = next(node for node in after.graph if node.op_type == "Relu")
    assert relu.inputs[0] is not None
    assert relu.inputs[0].dtype == ir.DataType.FLOAT16


def test_an_input_that_is_directly_an_output_stays_float32_and_exact() -> None:
    text = "g (float[B,4] x) => (float[B,4] x, float[B,4] y) { [fc] y = MatMul(x, w) }"
    model = tiny_models.graph(text, w=W)
    after = cast(model)
    exact = np.float32(np.pi) * W
    answers = ir.to_proto(after)
    assert [value.name for value in answers.graph.output] == ["x", "y"]
    assert after.graph.outputs[0] is after.graph.inputs[0]
    assert after.graph.outputs[0].dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(tiny_models.run_model(after, {"x": exact})["x"], exact)


def test_a_graph_that_is_all_border_has_nothing_inside() -> None:
    after = cast(tiny_models.graph("g (float[B,4] x) => (float[B,4] y) { [r] y = Relu(x) }"))
    assert float32_inside(after) == []
    assert CastToFloatType("fp16").run(after) == 0


def test_integer_inputs_and_outputs_are_left_alone() -> None:
    text = """g (float[B,4] x, int64[B] index) => (float[B,4] y, int64[B] z) {
      [i] z = Identity(index)
      [fc] y = MatMul(x, w)
    }"""
    after = cast(tiny_models.graph(text, w=W))
    assert [value.dtype for value in after.graph.inputs] == [ir.DataType.FLOAT, ir.DataType.INT64]
    assert [value.dtype for value in after.graph.outputs] == [ir.DataType.FLOAT, ir.DataType.INT64]


def test_layer_normalization_keeps_summing_in_float32() -> None:
    text = "g (float[B,64] x) => (float[B,64] y) { [n] h = LayerNormalization(x, s, b) [r] y = Relu(h) }"
    constants = {"s": np.ones(64, np.float32), "b": np.zeros(64, np.float32)}
    model = tiny_models.graph(text, **constants)
    x = 200 + 50 * np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)  # sums of squares overflow FP16
    got = tiny_models.run_model(cast(model), {"x": x})["y"]
    np.testing.assert_allclose(got, tiny_models.run_model(model, {"x": x})["y"], atol=0.02)


def test_an_epsilon_that_would_vanish_keeps_division_finite() -> None:
    model = tiny_models.graph(
        """
ratio (float[batch, 4] x) => (float[batch, 4] y) {
  below = Add(x, tiny)
  y = Div(x, below)
}
""",
        tiny=np.array(1e-12, np.float32),
    )
    built = run_passes(model, [CastToFloatType("fp16")])
    zeros = np.zeros((1, 4), np.float32)
    assert np.array_equal(tiny_models.run_model(built, {"x": zeros})["y"], zeros)


def test_a_range_of_floats_is_declined_by_name() -> None:
    model = tiny_models.graph(
        """
count (float[batch] x) => (float[n] y) {
  steps = Range(start, limit, delta)
  y = Add(steps, x)
}
""",
        start=np.array(0, np.float32),
        limit=np.array(4, np.float32),
        delta=np.array(1, np.float32),
    )
    with pytest.raises(GpusqError, match="Range counts in float32"):
        CastToFloatType("fp16").run(model)


def filled(fill: float) -> ir.Model:
    value = ir.tensor(np.array([fill], np.float32), name="fill")
    model = tiny_models.graph(
        "g (float[B,2] x, int64[1] n) => (float[B,2] y) { [f] h = ConstantOfShape(n) [a] y = Add(x, h) }"
    )
    next(node for node in model.graph if node.op_type == "ConstantOfShape").attributes["value"] = ir.AttrTensor(
        "value", value
    )
    return model


def test_a_fill_is_treated_as_a_constant_is() -> None:
    with pytest.raises(GpusqError, match="magnitude 1e\\+06 does not fit fp16") as caught:
        cast(filled(1e6))
    assert caught.value.place == "node f"
    masked = cast(filled(float(np.finfo(np.float32).min)))
    (node,) = [node for node in masked.graph if node.op_type == "ConstantOfShape"]
    fill = node.attributes.get_tensor("value")
    assert fill is not None
    assert fill.numpy().tolist() == [-65504]
