"""Which layers stay in floating point because INT8 costs too much there, within a share of the FLOPs.

Noise that layers make on their own adds up nearly as if it were independent. So the layers to leave out are those whose
noise (`streams`, or measured by running each alone: `sensitivity`) sums to most within the share: a knapsack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import onnx_ir as ir

from gpusq_deploy.artifacts import MixedRule, QuantPlan, Recipe
from gpusq_deploy.calibration import DataSource, Observations, spread_evenly
from gpusq_deploy.graph import GraphLayer, RoundedWeight, find_attentions
from gpusq_deploy.numerics import MOST_ADDERS, best_choice, cpu_workers
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize.noise_measured import noise_of_layers
from gpusq_deploy.quantize.noise_model import residual_noise
from gpusq_deploy.quantize.prepare import PlanInputs, rounded_weights
from gpusq_deploy.quantize.sites import ActivationSites
from gpusq_deploy.text import counted

_SAMPLES = 16
# Of the budget, what the layers come to that are run alone: the others are far from being left out.
_CONTENDERS = 3
_KERNEL = "it reads an attention's result, where a quantiser would cost a kernel"


class PlannedWeights(NamedTuple):
    """The plan, and the weights that were rounded for it, by node."""

    plan: QuantPlan
    rounded: Mapping[str, RoundedWeight]


def decide(
    planned: Callable[[ActivationSites], QuantPlan],
    inputs: PlanInputs,
    recipe: Recipe,
    seen: Observations,
    samples: DataSource,
    reporter: Reporter,
) -> PlannedWeights:
    """Plan, round, and where the recipe is mixed, leave out the layers that cost most and plan again.

    Args:
        planned: The plan with what is placed beyond layers; see `make_plan`.
        inputs: The graph, its ranges, and what is quantised beyond the inputs of layers.
        recipe: Its rules.
        seen: Answers what they need.
        samples: For a recipe that measures each layer's output error: then a few of them are run.
        reporter: Hears what is decided.
    """
    plan = planned(inputs.placements)
    rounded = rounded_weights(inputs, plan, recipe, seen, reporter)
    mixed = recipe.mixed
    if mixed is None or inputs.statistics is None:
        return PlannedWeights(plan=plan, rounded=rounded)

    planned_int8 = {decision.node for decision in plan.layers if decision.precision == "int8"}
    candidates = [layer for layer in inputs.layers if layer.kind == "linear" and layer.node in planned_int8]
    budget = mixed.flops * sum(layer.macs for layer in inputs.layers if layer.kind == "linear")
    first = _behind_attentions(inputs.model, mixed)
    noise: Mapping[str, float] = residual_noise(
        inputs.model, plan, rounded, inputs.statistics, workers=cpu_workers(MOST_ADDERS)
    )
    if mixed.measure == "output":
        running = contenders(candidates, noise, budget) | first
        reporter.say(f"measuring the output error of {counted(len(running), 'layer')}, each alone in INT8")
        noise = noise_of_layers(
            inputs.model,
            plan,
            rounded,
            spread_evenly(samples, _SAMPLES),
            lambda done, total: reporter.progress("measuring layers", done, total),
            nodes=running,
        )
    floats = layers_to_keep_float([layer for layer in candidates if layer.node in noise], noise, budget, first, mixed)
    most = f"at most {mixed.flops:.0%} of the Linear layers' FLOPs"
    reporter.say(f"keeping {counted(len(floats), 'layer')} in {plan.float_type.upper()} ({most})")
    plan = planned(replace(inputs.placements, floats=floats))
    return PlannedWeights(plan=plan, rounded={node: weight for node, weight in rounded.items() if node not in floats})


def contenders(candidates: Sequence[GraphLayer], noise: Mapping[str, float], budget: float) -> frozenset[str]:
    """Nodes of the layers that make most noise for each of their FLOPs, until they come to three times the budget."""
    known = sorted((layer for layer in candidates if layer.macs), key=lambda layer: -noise[layer.node] / layer.macs)
    before = itertools.accumulate((layer.macs for layer in known), initial=0)
    return frozenset(layer.node for layer, macs in zip(known, before, strict=False) if macs < _CONTENDERS * budget)


def layers_to_keep_float(
    candidates: Sequence[GraphLayer],
    noise: Mapping[str, float],
    budget: float,
    first: Collection[str],
    mixed: MixedRule,
) -> dict[str, str]:
    """Nodes of the layers that stay float, each with the reason.

    Args:
        candidates: Linear layers that are planned in INT8.
        noise: By node, noise over signal that the layer makes.
        budget: Multiply-accumulates that may stay float.
        first: Nodes of those that read attentions' results, where they go first: all of them if they fit, else the
            noisiest that do. The others share what is left.
        mixed: Says where the noise was measured.
    """
    known = [layer for layer in candidates if layer.macs]
    early = [layer for layer in known if layer.node in first]
    noisy = [layer for layer in known if layer.node not in first and noise[layer.node] > 0]
    chosen: dict[str, str] = {}
    for layers, reason in ((early, _KERNEL), (noisy, "of what fits, it is among the layers whose noise sums to most")):
        for layer in _fitting(layers, noise, budget):
            chosen[layer.node] = f"{reason}; {_cost(noise[layer.node], mixed)}"
            budget -= layer.macs
    return chosen


def _behind_attentions(model: ir.Model, mixed: MixedRule) -> frozenset[str]:
    """Nodes of the layers that go first where kernels do."""
    if mixed.first != "kernels":
        return frozenset()
    return frozenset(attention.output for attention in find_attentions(model))


def _fitting(layers: Sequence[GraphLayer], noise: Mapping[str, float], budget: float) -> list[GraphLayer]:
    if sum(layer.macs for layer in layers) <= budget:
        return [*layers]
    chosen = best_choice([noise[layer.node] for layer in layers], [layer.macs for layer in layers], budget)
    return [layers[index] for index in chosen]


def _cost(noise: float, mixed: MixedRule) -> str:
    if noise <= 0:
        return "alone in INT8 it changes nothing"
    left = f"{-10 * math.log10(noise):.1f} dB"
    return f"alone in INT8 it leaves {left}" + (" of its residual stream" if mixed.measure == "stream" else "")
