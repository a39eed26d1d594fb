"""Noise that a layer adds to its residual stream, against the rows themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import planning
import pytest
import tiny_models

from gpusq_deploy.artifacts.plan import QuantPlan
from gpusq_deploy.calibration.data import ArrayFile
from gpusq_deploy.calibration.instrument import VALUES_SUFFIX, instrumented
from gpusq_deploy.calibration.needs import Needs
from gpusq_deploy.calibration.observe import observe
from gpusq_deploy.graph.layers import GraphLayer, weight_rows, weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.quantize import RoundedWeight
from gpusq_deploy.graph.residual import branches_of_nodes
from gpusq_deploy.quantize.noise_model import LayerStatistics, residual_noise, statistics_request

Array = npt.NDArray[Any]
IMAGES = tiny_models.images(6, seed=5)


def linears(model: ir.Model) -> list[GraphLayer]:
    return [layer for layer in weighted_layers(model) if layer.kind == "linear"]


def seen(model: ir.Model) -> LayerStatistics:
    layers = linears(model)
    watch = statistics_request(model, layers)
    found = observe(model, Needs(moments=watch.tensors()), ArrayFile(name="noise", values=IMAGES))
    return watch.stream(found.moments)


def values_of(model: ir.Model, *tensors: str) -> dict[str, Array]:
    """Rows [n, K] of tensors, in float64."""
    found = tiny_models.run_model(instrumented(model, tensors, whole=tensors), {"input": IMAGES})
    rows = {tensor: found[f"{tensor}{VALUES_SUFFIX}"] for tensor in tensors}
    return {tensor: values.reshape(-1, values.shape[-1]).astype(np.float64) for tensor, values in rows.items()}


def slow_noise(model: ir.Model, layer: GraphLayer, plan: QuantPlan, rounded: RoundedWeight | None) -> float:
    """The layer's rows are multiplied by both weights; its input really is rounded."""
    decision = next(entry for entry in plan.layers if entry.node == layer.node)
    assert decision.activation is not None
    rows: npt.NDArray[np.float64] = weight_rows(model, layer).astype(np.float64)
    made: Array
    bias: Any
    if rounded is None:
        scale = np.abs(rows).max(axis=1, keepdims=True) / 127
        made, bias = np.rint(rows / scale) * scale, 0
    else:
        made, bias = rounded.codes * rounded.scale[:, None].astype(np.float64), rounded.bias
    inputs = values_of(model, layer.input)[layer.input]
    step = decision.activation.scale
    wanted: Array = inputs @ rows.T
    got: Array = np.clip(np.rint(inputs / step), -128, 127) * step @ made.T + bias
    own = np.square(got - wanted).sum() / (len(wanted) * wanted.var(axis=0).sum())
    residual = branches_of_nodes(model, [layer.node]).get(layer.node)
    if residual is None:
        return float(own)
    stream = values_of(model, residual.branch, residual.total)
    return float(own * stream[residual.branch].var(axis=0).sum() / stream[residual.total].var(axis=0).sum())


def corrected(model: ir.Model, layer: GraphLayer) -> RoundedWeight:
    """Codes off by a step here and there, and a bias that takes the mean error up."""
    rows: npt.NDArray[np.float64] = weight_rows(model, layer).astype(np.float64)
    scale = np.abs(rows).max(axis=1) / 100
    codes: Array = np.rint(rows / scale[:, None]) + np.random.default_rng(0).integers(-1, 2, rows.shape)
    mean = values_of(model, layer.input)[layer.input].mean(axis=0)
    bias: Array = (rows - codes * scale[:, None]) @ mean
    return RoundedWeight(codes=codes.astype(np.int8), scale=scale.astype(np.float32), bias=bias)


@pytest.mark.slow
def test_the_noise_of_each_layer_is_that_of_its_rows() -> None:
    model = run_passes(tiny_models.exported_vit().model, CANONICAL)
    plan = planning.plan_for(model, planning.measured(model))
    layers = linears(model)
    rounded = {layer.node: corrected(model, layer) for layer in layers if layer.layer.endswith(("fc1", "proj"))}
    noise = residual_noise(model, plan, rounded, seen(model), workers=2)
    assert list(noise) == [layer.node for layer in layers]
    for layer in layers:
        # Wide layers are estimated, and noise of rounding is only nearly even within a step.
        assert noise[layer.node] == pytest.approx(slow_noise(model, layer, plan, rounded.get(layer.node)), rel=0.2)


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_workers() -> None:
    model = run_passes(tiny_models.exported_vit().model, CANONICAL)
    plan = planning.plan_for(model, planning.measured(model))
    assert residual_noise(model, plan, {}, seen(model), workers=3) == residual_noise(model, plan, {}, seen(model))


def test_an_input_that_never_changes_makes_no_noise() -> None:
    text = "g (float[B,4] input) => (float[B,4] y) { [zero] n = Mul(input, none) [fc] y = MatMul(n, w) }"
    model = tiny_models.graph(text, none=np.zeros(1, np.float32), w=np.eye(4, dtype=np.float32))
    plan = planning.plan_for(model, planning.table({"n": 1.0}))
    watch = statistics_request(model, weighted_layers(model))
    source = ArrayFile(name="ones", values=np.ones((2, 4), np.float32))
    found = observe(model, Needs(moments=watch.tensors()), source)
    assert residual_noise(model, plan, {}, watch.stream(found.moments)) == {"fc": 0.0}
