"""Round INT8 weights with regard to the data: GPTQ and bias correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import QuantPlan, Recipe, Rule
from gpusq_deploy.calibration import ChannelMoments
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import (
    STORED_TYPE,
    GraphLayer,
    RoundedWeight,
    bias_place,
    weight_rows,
)
from gpusq_deploy.numerics import (
    dequantize,
    quantize,
    second_order_codes,
    single_threaded_blas,
    weight_scales,
)
from gpusq_deploy.quantize.smoothing import rule_of

# GPTQ's usual 0.01 fits a few dozen calibration images more than it fits others.
DAMPING = 0.1


def round_weights(
    model: ir.Model,
    layers: Sequence[GraphLayer],
    plan: QuantPlan,
    moments: Mapping[str, ChannelMoments],
    recipe: Recipe,
    *,
    workers: int = 1,
) -> dict[str, RoundedWeight]:
    """Codes and bias changes of the planned INT8 layers whose rule asks for more than rounding to nearest, by node.

    Args:
        model: The smoothed graph.
        layers: Its layers.
        plan: Decisions about them.
        moments: Of their inputs, in that graph, by node.
        recipe: Its rules.
        workers: Layers rounded at the same time; the codes don't depend on it.
    """
    steps = _steps(plan)
    single = {entry.node for entry in plan.layers if entry.weight is not None and entry.weight.one_scale}
    biased = {node.name for node in model.graph if bias_place(node) is not None}
    chosen = [layer for layer in layers if layer.node in steps and layer.node in moments and layer.kind == "linear"]

    def rounded(layer: GraphLayer) -> RoundedWeight:
        rule = rule_of(recipe, layer)
        if layer.node not in biased:
            rule = msgspec.structs.replace(rule, correct_bias=False)
        rows = weight_rows(model, layer).astype(np.float32)
        try:
            scale = weight_scales(rows, 0, dtype=STORED_TYPE[plan.float_type], one_scale=layer.node in single)
            return _rounded(rows, moments[layer.node], rule, scale=scale, step=steps[layer.node])
        except ValueError as error:
            raise GpusqError(
                f"the weight can't be quantised: {error}",
                place=f"{layer.layer}, tensor {layer.weight}",
                hint='build with --bf16 or --fp32, or with rounding = "nearest" in the recipe',
            ) from error

    with single_threaded_blas(), ThreadPoolExecutor(workers) as pool:
        return dict(zip((layer.node for layer in chosen), pool.map(rounded, chosen), strict=True))


def _steps(plan: QuantPlan) -> dict[str, float]:
    """Scales of the inputs of INT8 layers, by node."""
    return {
        entry.node: entry.activation.scale
        for entry in plan.layers
        if entry.precision == "int8" and entry.activation is not None
    }


def _rounded(
    rows: npt.NDArray[np.float32],
    moments: ChannelMoments,
    rule: Rule,
    *,
    scale: npt.NDArray[np.float32],
    step: float,
) -> RoundedWeight:
    if rule.rounding == "second-order" and moments.covariance is not None:
        gram = input_gram(moments, moments.covariance, step=step, corrected=rule.correct_bias)
        codes = second_order_codes(rows, scale, gram, damping=DAMPING)
    else:
        codes = quantize(rows, scale, axis=0)
    change = None
    if rule.correct_bias:
        change = (rows.astype(np.float64) - dequantize(codes, scale, axis=0)) @ moments.mean
    return RoundedWeight(codes=codes, scale=scale, bias=change)


def input_gram(
    moments: ChannelMoments, covariance: npt.NDArray[np.floating[Any]], *, step: float, corrected: bool
) -> npt.NDArray[np.float64]:
    """Second moments [K, K] of a layer's input that is rounded to multiples of `step`, 0 for one that isn't.

    `corrected` says that the bias takes the mean error up.
    """
    gram = covariance.astype(np.float64)
    # Rounding the input adds noise of a step's variance to every channel, whatever the others do.
    np.einsum("ii->i", gram)[:] += step**2 / 12
    return gram if corrected else gram + np.outer(moments.mean, moments.mean)
