"""From a float graph and data to what the plan needs: the smoothed graph, its ranges, and rounded weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gpusq_deploy.artifacts.calibration import CalibrationTable, Calibrator
from gpusq_deploy.artifacts.plan import FloatPrecision, Plan
from gpusq_deploy.calibration.moments import ChannelMoments, collect_moments
from gpusq_deploy.calibration.refine import (
    decide_smoothing,
    places_to_smooth,
    round_weights,
    rule_of,
    smoothed_moments,
    with_headroom,
)
from gpusq_deploy.checkpoint.checkpoint import Checkpoint
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.graph.layers import GraphLayer, weighted_layers
from gpusq_deploy.passes.base import run_passes
from gpusq_deploy.passes.quantize import STORED_TYPE, RoundedWeight
from gpusq_deploy.passes.smooth import Smooth, SmoothedTensor
from gpusq_deploy.recipe import Recipe
from gpusq_deploy.request import Reporter
from gpusq_deploy.steps import Data, find_ranges


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """A float graph ready to be planned and quantised.

    Attributes:
        model: Computes what the exported graph computes, with smoothed activations.
        layers: Its weighted layers.
        table: Ranges of the activations that are to be quantised.
        moments: By node, of the inputs of the layers whose weights or biases need them, in that graph.
    """

    model: ir.Model
    layers: tuple[GraphLayer, ...]
    table: CalibrationTable
    moments: Mapping[str, ChannelMoments]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is to be quantised and how."""

    layers: tuple[GraphLayer, ...]
    recipe: Recipe
    calibrators: Mapping[str, Calibrator]
    remainder: FloatPrecision


def make_ready(model: ir.Model, wanted: Wanted, data: Data, checkpoint: Checkpoint, reporter: Reporter) -> Ready:
    """Smooth the graph and find ranges.

    Ranges that were found before are those of the graph as it is: with them nothing is smoothed or widened, and no data
    says how weights should be rounded.

    Args:
        model: The canonical float graph; left as it is.
        wanted: Layers, recipe and calibrators.
        data: Samples, or ranges found before.
        checkpoint: May record ranges.
        reporter: Hears what is smoothed, what isn't, and why.
    """
    if data.given or checkpoint.ranges:
        table = find_ranges(model, wanted.layers, data, checkpoint, wanted.calibrators, reporter)
        if any(rule_of(wanted.recipe, layer).refined for layer in wanted.layers):
            reporter.say("the ranges are given: nothing is smoothed or widened, weights are rounded to nearest")
        return Ready(model=model, layers=weighted_layers(model), table=table, moments={})
    places, declined = places_to_smooth(model, wanted.layers, wanted.recipe, wanted.calibrators)
    moments = _moments(model, wanted, [place.tensor for place in places], data, reporter)
    smoothed = decide_smoothing(model, places, moments, wanted.recipe, stored=STORED_TYPE[wanted.remainder])
    _say(smoothed, declined, reporter)
    ready = run_passes(model, [Smooth(smoothed)])
    layers = weighted_layers(ready)
    names = {layer.node for layer in wanted.layers}
    inside = tuple(layer for layer in layers if layer.node in names)
    before = {layer.node: layer.input for layer in wanted.layers}
    calibrators = {
        layer.input: wanted.calibrators[before[layer.node]]
        for layer in inside
        if before[layer.node] in wanted.calibrators
    }
    table = find_ranges(ready, inside, data, checkpoint, calibrators, reporter)
    how = {layer.node: tensor.smoothing for tensor in smoothed for layer in tensor.place.readers}
    return Ready(
        model=ready,
        layers=layers,
        table=with_headroom(table, inside, wanted.recipe, smoothed, calibrators),
        moments={
            node: smoothed_moments(moments[tensor], how.get(node))
            for node, tensor in before.items()
            if tensor in moments
        },
    )


def rounded_weights(ready: Ready, plan: Plan, recipe: Recipe) -> dict[str, RoundedWeight]:
    """Weights that are rounded with regard to the data, by node."""
    return round_weights(ready.model, ready.layers, plan, ready.moments, recipe, stored=STORED_TYPE[plan.remainder])


def _moments(
    model: ir.Model, wanted: Wanted, smoothed: Sequence[str], data: Data, reporter: Reporter
) -> dict[str, ChannelMoments]:
    """Of the activations to smooth, and of those whose readers' weights or biases depend on the data."""
    linear = [layer for layer in wanted.layers if layer.kind == "linear" and not layer.reshaped]
    second_order = {layer.input for layer in linear if rule_of(wanted.recipe, layer).rounding == "second-order"}
    biased = {layer.input for layer in linear if rule_of(wanted.recipe, layer).correct_bias}
    tensors = tuple(
        dict.fromkeys(layer.input for layer in linear if layer.input in {*smoothed, *second_order, *biased})
    )
    return collect_moments(
        model,
        tensors,
        data.calibrate,
        covariance_of=second_order,
        open_model=open_onnx,
        progress=lambda done, total: reporter.progress("looking at channels", done, total),
    )


def _say(smoothed: Sequence[SmoothedTensor], declined: Sequence[tuple[str, str]], reporter: Reporter) -> None:
    if smoothed:
        reporter.say(f"smoothed {len(smoothed)} activations behind LayerNormalizations and Gelus")
    reasons: dict[str, list[str]] = {}
    for layer, reason in declined:
        reasons.setdefault(reason, []).append(layer)
    for reason, layers in reasons.items():
        more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
        reporter.say(f"not smoothed: the input of {layers[0]}{more}: {reason}")
