"""INT8 outputs of Linear layers: what they are predicted to cost, which layers get them, and what is computed then."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import planning
import pytest
import tiny_models

from gpusq_deploy.artifacts.plan import QuantPlan
from gpusq_deploy.artifacts.recipe import Recipe, Rule, recipe_from_toml
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.calibration.moments import ChannelMoments, ChannelMomentSums
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import GraphLayer, weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.quantize.int8_outputs import choose_outputs, output_candidates, output_site, predicted_db
from gpusq_deploy.quantize.planning import PlanRequest, make_plan
from gpusq_deploy.quantize.sites import ActivationSites, Int8OutputDecision, Int8OutputRequest
from gpusq_deploy.sparsity.graph_check import graph_sparsity

Array = npt.NDArray[Any]

TEXT = """
g (float[B,{k}] x) => (float[B,{n}] y) {{
  [product] h = MatMul(x, w)
  [bias] y = Add(h, b)
}}
"""
K, N = 256, 384


def layer(k: int = K, n: int = N, *, plain: bool = True) -> ir.Model:
    """A Linear with a 2:4 weight, as MatMul and Add; else as a Gemm."""
    random = np.random.default_rng(3)
    weight = random.standard_normal((k, n)).astype(np.float32)
    weight.reshape(-1, 4, n)[:, :2] = 0
    bias = random.standard_normal(n).astype(np.float32)
    text = TEXT.format(k=k, n=n)
    if not plain:
        text = f"g (float[B,{k}] x) => (float[B,{n}] y) {{ [product] y = Gemm(x, w, b) }}"
    return tiny_models.graph(text, w=weight, b=bias)


def rows(k: int = K) -> Array:
    """Inputs with a mean, and channels of different size that hang together."""
    random = np.random.default_rng(4)
    mixed = random.standard_normal((4000, k)) @ (np.eye(k) + 0.1 * random.standard_normal((k, k)))
    return np.asarray(mixed * random.uniform(0.2, 2, k) + random.standard_normal(k), np.float32)


def moments(values: Array, *, squares: bool = True) -> ChannelMoments:
    sums = ChannelMomentSums(values, squares=squares)
    sums.add(values)
    return sums.moments()


def report(model: ir.Model, layers: tuple[GraphLayer, ...]) -> SparsityReport:
    return graph_sparsity(model, source="test", recipe=planning.EVERYTHING)


def choices(
    model: ir.Model, recipe: Recipe, wish: Int8OutputRequest | None, **changed: Any
) -> tuple[Int8OutputDecision, ...]:
    layers = weighted_layers(model)
    candidates = output_candidates(layers, recipe, report(model, layers), wish)
    found = {"product": moments(rows(layers[0].k))} | changed
    amax = {"h": 90.0}
    return choose_outputs(model, candidates, recipe, wish, (amax, {k: v for k, v in found.items() if v is not None}))


def saying(output: Any) -> Recipe:
    return msgspec.structs.replace(planning.EVERYTHING, rules=(Rule(reason="all of them", output=output),))


def snapped(values: Array, step: float) -> Array:
    return np.clip(np.rint(values / step), -128, 127) * step


def test_the_prediction_is_what_rounding_by_hand_costs() -> None:
    weight = np.asarray(layer().graph.initializers["w"].const_value).T.astype(np.float32)
    values = rows()
    wanted = values.astype(np.float64) @ weight.T
    largest = float(np.abs(wanted).max())
    step = float(np.abs(weight).max()) / 127
    got = snapped(values.astype(np.float64) @ snapped(weight, step).T, largest / 127)
    measured = 10 * math.log10(float(np.square(wanted).sum() / np.square(got - wanted).sum()))
    assert predicted_db(weight, moments(values), largest) == pytest.approx(measured, abs=0.1)
    # Both parts count: without the output's, and with twice its range.
    assert predicted_db(weight, moments(values), 0.0) > measured + 1
    assert predicted_db(weight, moments(values), 2 * largest) < measured - 1
    with pytest.raises(ValueError, match="covariance"):
        predicted_db(weight, moments(values, squares=False), largest)


def test_the_recipe_decides_whatever_it_costs() -> None:
    (choice,) = choices(layer(), saying("int8"), None)
    assert choice.chosen
    assert "output = int8, predicted" in choice.reason
    (unknown,) = choices(layer(), saying("int8"), None, product=None)
    assert unknown.chosen
    assert "isn't predicted" in unknown.reason
    assert choices(layer(), saying("float"), Int8OutputRequest(least_db=0)) == ()
    assert choices(layer(), saying(None), None) == ()


@pytest.mark.parametrize(
    ("model", "least", "product", "said"),
    [
        (layer(), 20.0, ..., ""),
        (layer(), 60.0, ..., "dB of its own signal, below 60"),
        (layer(k=64), 20.0, ..., "below 256 channels"),
        (layer(n=64), 20.0, ..., "below 256 channels"),
        (layer(), 20.0, None, "no second moments"),
        (layer(plain=False), 20.0, ..., "between its GEMM and its bias"),
    ],
)
def test_the_command_gets_them_where_they_pay_and_hold(model: ir.Model, least: float, product: Any, said: str) -> None:
    changed = {} if product is ... else {"product": product}
    (choice,) = choices(model, saying(None), Int8OutputRequest(least_db=least), **changed)
    assert choice.chosen == (not said)
    assert said in choice.reason
    assert not said or "at least" not in choice.reason


def test_the_command_speaks_of_sparse_layers_alone() -> None:
    dense = layer()
    weight = np.ones((K, N), np.float32)
    dense.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    assert choices(dense, saying(None), Int8OutputRequest(least_db=0)) == ()


def test_a_product_that_the_graph_returns_stays_as_it_is() -> None:
    model = tiny_models.graph(
        "g (float[B,4] x) => (float[B,4] h) { [product] h = MatMul(x, w) }", w=np.eye(4, dtype=np.float32)
    )
    assert output_site(model, weighted_layers(model)[0]) is None


def decided(model: ir.Model, *, amax: float) -> QuantPlan:
    layers = weighted_layers(model)
    choice = Int8OutputDecision(layer=layers[0].layer, node="product", tensor="h", chosen=True, reason="a test")
    return make_plan(
        layers,
        PlanRequest(recipe=planning.EVERYTHING, quantize=True, sparse=False, float_type="fp32"),
        table=planning.table({"x": 6.0, "h": amax}),
        sparsity=SparsityReport(source="test", layers=()),
        placements=ActivationSites(outputs=(choice,)),
    )


def test_the_graph_rounds_the_product_in_front_of_the_bias_with_one_weight_scale() -> None:
    model = layer()
    weight, bias = (np.asarray(model.graph.initializers[name].const_value, np.float64) for name in ("w", "b"))
    plan = decided(model, amax=200.0)
    assert plan.layers[0].output_reason == "a test"
    assert [(placed.role, placed.node) for placed in plan.placed] == [("output", "product")]
    assert "INT8 outputs, with one weight scale each, in 1 of 1 layer" in plan.notes
    built = run_passes(model, [Quantize(plan)])
    scale = built.graph.initializers["product_weight_scale"].const_value
    assert scale is not None
    assert tuple(scale.shape) == ()
    values = rows()[:8]
    product = snapped(values.astype(np.float64), 6 / 127) @ snapped(weight, float(np.abs(weight).max()) / 127)
    expected = snapped(product, 200 / 127) + bias
    got = tiny_models.run_model(built, {"x": values})["y"]
    # A sum beside a rounding boundary may fall on its other side.
    assert np.abs(got - expected).max() < 1.01 * 200 / 127
    assert np.mean(np.abs(got - expected) < 1e-3) > 0.99
    again: list[int] = []
    run_passes(built, [Quantize(plan)], after=lambda _step, _model, count: again.append(count))
    assert again == [0]


@pytest.mark.parametrize("line", ['kind = "conv"', 'precision = "float"', 'kind = "patch_embed"'])
def test_only_int8_linears_have_int8_outputs(line: str) -> None:
    text = (
        f'schema = "gpusq.recipe/1"\nname = "n"\ndescription = "d"\n[[rule]]\noutput = "int8"\nreason = "r"\n{line}\n'
    )
    with pytest.raises(GpusqError, match="INT8 Linear layers"):
        recipe_from_toml(text, place="mine.toml")
