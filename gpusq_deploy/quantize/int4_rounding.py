"""INT4 weights that are rounded with regard to the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import QuantPlan, Recipe, Rule
from gpusq_deploy.calibration import ChannelMoments
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import GraphLayer, RoundedWeight, bias_place, weight_rows
from gpusq_deploy.numerics import int4_blocks, second_order_int4
from gpusq_deploy.quantize.weight_rounding import DAMPING, input_gram


def layers_to_fit(layers: Sequence[GraphLayer], plan: QuantPlan, recipe: Recipe) -> tuple[GraphLayer, ...]:
    """Layers that are planned in INT4 and whose rule asks for more than rounding to nearest."""
    planned = {decision.node for decision in plan.layers if decision.precision == "int4"}
    rules = ((layer, recipe.rule_for(layer.layer, layer.kind)) for layer in layers if layer.node in planned)
    return tuple(layer for layer, rule in rules if rule is not None and rule.refined)


def fitted_weights(
    model: ir.Model,
    layers: Sequence[GraphLayer],
    moments: Mapping[str, ChannelMoments],
    recipe: Recipe,
    *,
    stored: npt.DTypeLike,
) -> dict[str, RoundedWeight]:
    """Codes, scales and bias changes by node.

    Args:
        model: The graph that is to be quantised.
        layers: See `layers_to_fit`.
        moments: Of their inputs, by tensor, with covariances.
        recipe: Its rules.
        stored: The type of the scales.

    Raises:
        GpusqError: A weight can't be quantised.
    """
    biased = {node.name for node in model.graph if bias_place(node) is not None}
    fitted: dict[str, RoundedWeight] = {}
    for layer in layers:
        rule = recipe.rule_for(layer.layer, layer.kind)
        assert rule is not None, "only layers that a rule decides come here"
        rows = weight_rows(model, layer).astype(np.float32)
        try:
            fitted[layer.node] = _fitted(rows, moments[layer.input], rule, layer.node in biased, stored)
        except ValueError as error:
            raise GpusqError(
                f"the weight can't be quantised: {error}",
                place=f"{layer.layer}, tensor {layer.weight}",
                hint='build with --bf16 or --fp32, or with rounding = "nearest" in the recipe',
            ) from error
    return fitted


def _fitted(
    rows: npt.NDArray[np.float32], moments: ChannelMoments, rule: Rule, biased: bool, stored: npt.DTypeLike
) -> RoundedWeight:
    corrected = rule.correct_bias and biased
    if rule.rounding == "second-order" and moments.covariance is not None:
        gram = input_gram(moments, moments.covariance, step=0, corrected=corrected)
        codes, scale = second_order_int4(rows, rule.block_size, gram, damping=DAMPING, dtype=stored)
    else:
        codes, scale = int4_blocks(rows, rule.block_size, dtype=stored)
    lost = rows.astype(np.float64) - codes * np.repeat(scale, rule.block_size, axis=1)
    return RoundedWeight(codes=codes, scale=scale, bias=lost @ moments.mean if corrected else None)
