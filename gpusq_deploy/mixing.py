"""Which layers stay in floating point because INT8 costs too much there, within a share of the FLOPs.

Noise that layers make on their own adds up nearly as if it were independent. So the layers to leave out are those whose
noise, measured by running each alone (`sensitivity`), sums to most within the share: a knapsack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import onnx_ir as ir

from gpusq_deploy.artifacts.plan import Plan
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.calibration.sources import DataSource, Selection
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.attention import find_attentions
from gpusq_deploy.graph.layers import GraphLayer
from gpusq_deploy.numerics.knapsack import best_choice
from gpusq_deploy.passes.quantize import RoundedWeight
from gpusq_deploy.placements import Placements
from gpusq_deploy.placing import Prepared, fitted
from gpusq_deploy.plan import PlanRequest, make_plan
from gpusq_deploy.ranges import Data
from gpusq_deploy.recipe import MixedRule
from gpusq_deploy.request import Reporter
from gpusq_deploy.sensitivity import noise_of_layers
from gpusq_deploy.wide import Wide

_SAMPLES = 16
# Of the budget, what the layers come to that are measured on all samples: the others are far from being left out.
_CONTENDERS = 3
# Of the share, what kernels must leave for a run of the model per layer to be worth it.
_WORTH_MEASURING = 1 / 4
_KERNEL = "it reads an attention's result, where a quantiser would cost a kernel"


class Decided(NamedTuple):
    """The plan, and the weights that were rounded for it, by node."""

    plan: Plan
    rounded: Mapping[str, RoundedWeight]


def decide(
    prepared: Prepared, asked: PlanRequest, sparsity: SparsityReport, wide: Wide, data: Data, reporter: Reporter
) -> Decided:
    """Plan, round, and where the recipe is mixed, leave out the layers that cost most and plan again.

    Raises:
        GpusqError: See `make_plan`; or a mixed recipe has no data to measure on.
    """

    def planned(placements: Placements) -> Plan:
        return make_plan(
            prepared.layers, asked, table=prepared.table, sparsity=sparsity, placements=placements, wide=wide
        )

    plan = planned(prepared.placements)
    rounded = fitted(prepared, plan, asked.recipe, data, reporter)
    mixed = asked.recipe.mixed
    if mixed is None or prepared.ready is None:
        return Decided(plan=plan, rounded=rounded)

    planned_int8 = {decision.node for decision in plan.layers if decision.precision == "int8"}
    candidates = [layer for layer in prepared.layers if layer.kind == "linear" and layer.node in planned_int8]

    budget = _share(prepared.layers, mixed)
    first = _behind_attentions(prepared.model, mixed)

    def measured() -> Mapping[str, float]:
        if not data.real:
            raise GpusqError(
                "a mixed recipe measures what each layer costs, and there is no data to measure on",
                place=f"recipe {asked.recipe.name}",
                hint="add --calib FOLDER",
            )
        reporter.say("measuring what each INT8 layer alone does to the output")
        return noise_of_layers(
            prepared.model,
            plan,
            rounded,
            _few(data.calibrate),
            lambda done, total: reporter.progress("measuring layers", done, total),
            narrow=lambda noise: contenders(candidates, noise, budget) | first,
        )

    floats = left_float(prepared.model, candidates, budget, mixed, measured)
    reporter.say(f"{len(floats)} layers stay {asked.remainder}, up to {mixed.flops:.0%} of the Linear layers' FLOPs")
    plan = planned(replace(prepared.placements, floats=floats))
    return Decided(plan=plan, rounded={node: weight for node, weight in rounded.items() if node not in floats})


def contenders(candidates: Sequence[GraphLayer], noise: Mapping[str, float], budget: float) -> frozenset[str]:
    """Nodes of the layers that make most noise for each of their FLOPs, until they come to three times the budget."""
    known = sorted((layer for layer in candidates if layer.macs), key=lambda layer: -noise[layer.node] / layer.macs)
    before = itertools.accumulate((layer.macs for layer in known), initial=0)
    return frozenset(layer.node for layer, macs in zip(known, before, strict=False) if macs < _CONTENDERS * budget)


def left_float(
    model: ir.Model,
    candidates: Sequence[GraphLayer],
    budget: float,
    mixed: MixedRule,
    measured: Callable[[], Mapping[str, float]],
) -> dict[str, str]:
    """Nodes of the layers that stay float, each with the reason.

    1. Recipes that put kernels first begin with the layers that read attentions' results: all of them if they fit, else
       the noisiest that do. TensorRT fuses FP16 attention; a quantiser behind it is a kernel of its own.
    2. What is left of the budget goes to the layers whose noise sums to most. Nothing is measured if no layer fits, nor
       where kernels left less than a quarter of it: a ViT's attentions take five sixths of a tenth.

    Args:
        model: The float graph.
        candidates: Its Linear layers that are planned in INT8.
        budget: Multiply-accumulates that may stay float.
        mixed: What they are for.
        measured: Gives, by node, noise over signal at the output with that layer alone in INT8.
    """
    known = [layer for layer in candidates if layer.macs]
    behind = _behind_attentions(model, mixed)
    first = [layer for layer in known if layer.node in behind]
    rest = budget - sum(layer.macs for layer in first)
    fits = any(layer not in first and layer.macs <= rest for layer in known)
    if rest >= 0 and not (fits and rest >= _WORTH_MEASURING * budget):
        why = "too little of the share is left" if fits else "no other layer fits"
        return dict.fromkeys((layer.node for layer in first), f"{_KERNEL}; nothing was measured: {why}")
    noise = measured()
    chosen: dict[str, str] = {}
    noisy = [layer for layer in known if noise[layer.node] > 0]
    for layers, reason in ((first, _KERNEL), (noisy, "of what fits, it is among the layers whose noise sums to most")):
        for layer in _fitting([layer for layer in layers if layer.node not in chosen], noise, budget):
            chosen[layer.node] = f"{reason}; {_alone(noise[layer.node])}"
            budget -= layer.macs
    return chosen


def _behind_attentions(model: ir.Model, mixed: MixedRule) -> frozenset[str]:
    """Nodes of the layers that go first where kernels do."""
    if mixed.first != "kernels":
        return frozenset()
    return frozenset(attention.output for attention in find_attentions(model))


def _share(layers: Sequence[GraphLayer], mixed: MixedRule) -> float:
    return mixed.flops * sum(layer.macs for layer in layers if layer.kind == "linear")


def _fitting(layers: Sequence[GraphLayer], noise: Mapping[str, float], budget: float) -> list[GraphLayer]:
    if sum(layer.macs for layer in layers) <= budget:
        return [*layers]
    chosen = best_choice([noise[layer.node] for layer in layers], [layer.macs for layer in layers], budget)
    return [layers[index] for index in chosen]


def _alone(noise: float) -> str:
    if noise <= 0:
        return "alone in INT8 it changes nothing"
    return f"alone in INT8 it leaves {-10 * math.log10(noise):.1f} dB"


def _few(source: DataSource) -> DataSource:
    count = min(len(source), _SAMPLES)
    return Selection(source=source, indices=sorted({index * len(source) // count for index in range(count)}))
