"""What calibration decides beyond ranges, against the graphs that come of it."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import planning
import pytest
import tiny_models

from gpusq_deploy.artifacts.calibration import CalibrationTable
from gpusq_deploy.artifacts.recipe import Recipe, Rule
from gpusq_deploy.calibration.data import ArrayFile
from gpusq_deploy.calibration.moments import ChannelMoments
from gpusq_deploy.calibration.needs import Needs, needs_of_layers
from gpusq_deploy.calibration.observe import observe
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.quantize import Quantize, RoundedWeight
from gpusq_deploy.graph.passes.smooth import Smooth, SmoothedTensor
from gpusq_deploy.graph.smoothable import find_smoothable
from gpusq_deploy.quantize.smoothing import decide_smoothing, moments_behind, table_behind, with_headroom
from gpusq_deploy.quantize.weight_rounding import round_weights

Array = npt.NDArray[Any]
# A norm, two layers on it, and a GELU between them and a third.
TEXT = """g (float[B,1,1,8] input) => (float[B,1,1,4] y, float[B,1,1,4] z) {
  [norm] a = LayerNormalization<axis = -1>(input, gain, shift)
  [up] p = MatMul(a, w1) [upb] h = Add(p, b1) [act] g = Gelu(h)
  [side] q = MatMul(a, w2) [sideb] z = Add(q, b2)
  [down] r = MatMul(g, w3) [downb] y = Add(r, b2)
}"""


def numbers(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


VALUES = numbers(40, 1, 1, 8, seed=0)


def recipe(
    *,
    smooth: bool = True,
    headroom: float = 0.0,
    rounding: Literal["nearest", "second-order"] = "nearest",
    correct_bias: bool = False,
) -> Recipe:
    rules = (
        Rule(smooth=smooth, headroom=headroom, rounding=rounding, correct_bias=correct_bias, reason="all of them"),
    )
    return Recipe(schema="gpusq.recipe/1", name="refined", description="a test", rules=rules)


def model_of() -> ir.Model:
    return tiny_models.graph(
        TEXT,
        gain=np.geomspace(0.2, 5, 8).astype(np.float32),
        shift=3 * numbers(8, seed=1),
        w1=numbers(8, 6, seed=2),
        b1=numbers(6, seed=3),
        w2=numbers(8, 4, seed=4),
        b2=numbers(4, seed=5),
        w3=numbers(6, 4, seed=6),
    )


def moments_of(model: ir.Model, values: Array = VALUES) -> dict[str, ChannelMoments]:
    """Of each layer's input, by tensor."""
    return seen(model, values)[1]


def seen(model: ir.Model, values: Array = VALUES) -> tuple[CalibrationTable, dict[str, ChannelMoments]]:
    """The ranges and moments of each layer's input."""
    layers = weighted_layers(model)
    needs = needs_of_layers(layers) | Needs(moments={layer.input: True for layer in layers})
    found = observe(model, needs, ArrayFile(name="rows", values=values))
    assert found.table is not None
    return found.table, dict(found.moments)


def decided(model: ir.Model, asked: Recipe) -> tuple[SmoothedTensor, ...]:
    places, declined = find_smoothable(model, weighted_layers(model))
    assert declined == ()
    return decide_smoothing(model, places, moments_of(model), asked, stored=np.float32)


def test_moments_of_a_smoothed_activation_are_those_measured_on_the_smoothed_graph() -> None:
    model = model_of()
    smoothed = decided(model, recipe())
    before = moments_of(model)
    after = run_passes(model, [Smooth(smoothed)])
    measured = {layer.node: moments_of(after)[layer.input] for layer in weighted_layers(after)}
    assert {tensor.place.producer for tensor in smoothed} == {"layer-norm", "gelu"}
    for tensor in smoothed:
        assert tensor.smoothing.offset.any()
        got = moments_behind(before, smoothed)[tensor.place.tensor]
        for reader in tensor.place.readers:
            expected = measured[reader.node]
            assert got.covariance is not None
            assert expected.covariance is not None
            for name in ("low", "high", "mean", "covariance"):
                np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert moments_behind(before, ())["a"] is before["a"]


def test_ranges_of_a_smoothed_graph_are_those_measured_on_it() -> None:
    model = model_of()
    smoothed = decided(model, recipe())
    table, moments = seen(model)
    after = run_passes(model, [Smooth(smoothed)])
    now = {layer.node: layer.input for layer in weighted_layers(after)}
    names = {layer.input: now[layer.node] for layer in weighted_layers(model)}
    got = table_behind(table, smoothed, moments_behind(moments, smoothed), names)
    expected, _ = seen(after)
    assert [entry.tensor for entry in got.ranges] == [entry.tensor for entry in expected.ranges]
    assert [entry.amax for entry in got.ranges] == pytest.approx([entry.amax for entry in expected.ranges], rel=1e-5)
    untouched = table_behind(table, (), moments, {name: name for name in names})
    assert untouched == table


def test_factors_behind_a_norm_see_the_columns_of_every_reader() -> None:
    model = model_of()
    (norm,) = [tensor for tensor in decided(model, recipe()) if tensor.place.producer == "layer-norm"]
    found = moments_of(model)["a"]
    logs: list[float] = []
    for channel in range(8):
        columns = [float(np.abs(numbers(8, n, seed=seed)[channel]).max()) for n, seed in ((6, 2), (4, 4))]
        reach = float(found.high[channel] - found.low[channel]) / 2
        logs.append(0.6 * math.log(reach) - 0.4 * math.log(max(columns)))
    np.testing.assert_allclose(np.log(norm.smoothing.factor), np.array(logs) - np.mean(logs), rtol=1e-4, atol=1e-5)


def test_headroom_widens_ranges_and_origins_say_so() -> None:
    model, asked = model_of(), recipe(headroom=0.15)
    smoothed = decided(model, asked)
    after = run_passes(model, [Smooth(smoothed)])
    layers = weighted_layers(after)
    inputs = {layer.node: layer.input for layer in layers}
    table = planning.table({inputs["up"]: 2.0, inputs["down"]: 3.0})
    norm, gelu = with_headroom(table, layers, asked, smoothed, {}).ranges
    assert norm.amax == pytest.approx(2.3)
    assert norm.origin == "given, smoothed behind its layer-norm, 15 % headroom"
    (decision,) = [tensor for tensor in smoothed if tensor.place.producer == "gelu"]
    assert gelu.amax == decision.smoothing.amax
    assert gelu.origin == "given, smoothed behind its gelu, centred, with headroom"


def test_without_smoothing_and_headroom_a_table_stays_as_it_is() -> None:
    layers = weighted_layers(model_of())
    table = planning.table({"a": 2.0, "g": 3.0})
    assert with_headroom(table, layers, recipe(smooth=False), (), {}) == table


def test_layers_that_read_one_tensor_get_the_widest_headroom_among_them() -> None:
    layers = weighted_layers(model_of())
    rules = (Rule(match="up", headroom=0.1, reason=""), Rule(match="side", headroom=0.5, reason=""), Rule(reason=""))
    asked = Recipe(schema="gpusq.recipe/1", name="mixed", description="a test", rules=rules)
    one, other = with_headroom(planning.table({"a": 2.0, "g": 3.0}), layers, asked, (), {}).ranges
    assert one.amax == pytest.approx(3.0)
    assert other.amax == 3
    assert (one.origin, other.origin) == ("given, 50 % headroom", "given")


def rounded(model: ir.Model, asked: Recipe, **changes: ChannelMoments) -> tuple[dict[str, RoundedWeight], ir.Model]:
    """The weights, and a graph in which nothing else is quantised: its Q/DQ pairs of activations are bypassed."""
    layers = weighted_layers(model)
    moments = {**moments_of(model), **changes}
    plan = planning.plan_for(model, planning.table(dict.fromkeys(moments, 30.0)), recipe=asked)
    by_node = {layer.node: moments[layer.input] for layer in layers}
    weights = round_weights(model, layers, plan, by_node, asked)
    after = run_passes(model, [Quantize(plan, weights)])
    for node in after.graph:
        source = None if node.inputs[0] is None else node.inputs[0].producer()
        if node.op_type == "DequantizeLinear" and source is not None and source.op_type == "QuantizeLinear":
            for reader, index in list(node.outputs[0].uses()):
                reader.replace_input_with(index, source.inputs[0])
    return weights, after


@pytest.mark.parametrize("rounding", ["nearest", "second-order"])
def test_a_corrected_bias_takes_up_the_mean_error_of_every_channel(
    rounding: Literal["nearest", "second-order"],
) -> None:
    """Of z, whose input is that of the float graph. Data and weights are coarse, so that there is something to mend."""
    model = model_of()
    exact = tiny_models.run_model(model, {"input": VALUES})["z"]
    errors: dict[bool, Array] = {}
    for correct in (False, True):
        _, after = rounded(model, recipe(rounding=rounding, correct_bias=correct))
        errors[correct] = np.abs((tiny_models.run_model(after, {"input": VALUES})["z"] - exact).mean(axis=(0, 1, 2)))
    assert errors[True].max() < 2e-6
    assert errors[False].max() > 1e-4


def squares(model: ir.Model, asked: Recipe) -> float:
    exact = tiny_models.run_model(model, {"input": VALUES})["z"]
    got = tiny_models.run_model(rounded(model, asked)[1], {"input": VALUES})["z"]
    return float(np.mean((got - exact) ** 2))


@pytest.mark.parametrize(("correct", "share"), [(False, 0.8), (True, 0.95)])
def test_second_order_rounding_moves_outputs_less_than_nearest(correct: bool, share: float) -> None:
    """Without a corrected bias the inputs' means count too: they are larger than their deviations here."""
    model = model_of()
    nearest = squares(model, recipe(correct_bias=correct))
    assert squares(model, recipe(rounding="second-order", correct_bias=correct)) < share * nearest


def test_a_layer_without_a_bias_is_rounded_as_one_that_is_not_corrected() -> None:
    text = "g (float[B,1,1,8] input) => (float[B,1,1,4] z) { [act] a = Gelu(input) [side] z = MatMul(a, w2) }"
    model = tiny_models.graph(text, w2=numbers(8, 4, seed=4))
    plain, _ = rounded(model, recipe(rounding="second-order"))
    asked, _ = rounded(model, recipe(rounding="second-order", correct_bias=True))
    assert asked["side"].bias is None
    np.testing.assert_array_equal(asked["side"].codes, plain["side"].codes)


def test_layers_without_moments_or_in_floating_point_are_left_to_quantize() -> None:
    model, asked = model_of(), recipe(rounding="second-order")
    layers = weighted_layers(model)
    plan = planning.plan_for(model, planning.table({"a": 30.0, "g": 0.0}), recipe=asked)
    moments = moments_of(model)
    found = {"up": moments["a"], "down": moments["g"]}
    assert set(round_weights(model, layers, plan, found, asked)) == {"up"}


def test_moments_that_are_none_stop_it_and_the_layer_is_named() -> None:
    model = model_of()
    wrong = ChannelMoments(
        low=np.zeros(8, np.float32),
        high=np.ones(8, np.float32),
        mean=np.zeros(8),
        variance=np.ones(8),
        covariance=-np.eye(8, dtype=np.float32),
    )
    with pytest.raises(GpusqError, match=r"can't be quantised: .* not positive definite") as caught:
        rounded(model, recipe(rounding="second-order"), a=wrong)
    assert caught.value.place == "up, tensor w1"


def test_a_gelu_beyond_the_range_of_the_stored_type_is_named() -> None:
    model = model_of()
    places, _ = find_smoothable(model, weighted_layers(model))
    high = np.full(6, 1e9, np.float32)
    huge = ChannelMoments(
        low=np.zeros(6, np.float32), high=high, mean=np.zeros(6), variance=np.ones(6), covariance=None
    )
    with pytest.raises(GpusqError, match="can't be quantised") as caught:
        decide_smoothing(model, places, {**moments_of(model), "g": huge}, recipe(), stored=np.float16)
    assert caught.value.place == "tensor g"


def test_rounding_of_the_input_counts_as_noise() -> None:
    """With steps far larger than all that the inputs do together, no column can make up for another."""
    model, asked = model_of(), recipe(rounding="second-order")
    layers, moments = weighted_layers(model), moments_of(model)
    by_node = {layer.node: moments[layer.input] for layer in layers}
    codes: dict[float, Array] = {}
    for amax in (30.0, 1e7):
        plan = planning.plan_for(model, planning.table({"a": amax, "g": amax}), recipe=asked)
        codes[amax] = round_weights(model, layers, plan, by_node, asked)["side"].codes
    weight = numbers(8, 4, seed=4).T
    nearest = np.rint(weight / (np.abs(weight).max(axis=1, keepdims=True) / 127))
    np.testing.assert_array_equal(codes[1e7], nearest)
    assert (codes[30.0] != nearest).any()
