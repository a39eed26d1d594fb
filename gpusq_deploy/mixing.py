"""Which layers stay in floating point because INT8 costs too much there, within a share of the FLOPs.

Noise that layers make on their own adds up nearly as if it were independent. So the layers to leave out are those whose
noise, measured by running each alone (`sensitivity`), sums to most within the share: a knapsack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

_SAMPLES = 4


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
    if not data.real:
        raise GpusqError(
            "a mixed recipe measures what each layer costs, and there is no data to measure on",
            place=f"recipe {asked.recipe.name}",
            hint="add --calib FOLDER",
        )
    reporter.say("measuring what each INT8 layer alone does to the output")
    noise = noise_of_layers(
        prepared.model,
        prepared.layers,
        plan,
        rounded,
        _few(data.calibrate),
        lambda done, total: reporter.progress("measuring layers", done, total),
    )
    floats = left_float(prepared.model, prepared.layers, noise, mixed)
    reporter.say(f"{len(floats)} layers stay {asked.remainder}, up to {mixed.flops:.0%} of the Linear layers' FLOPs")
    plan = planned(replace(prepared.placements, floats=floats))
    return Decided(plan=plan, rounded={node: weight for node, weight in rounded.items() if node not in floats})


def left_float(
    model: ir.Model, layers: Sequence[GraphLayer], noise: Mapping[str, float], mixed: MixedRule
) -> dict[str, str]:
    """Nodes of the layers that stay float, each with the reason; together within the share of the Linear FLOPs.

    1. Recipes that put kernels first begin with the layers that read attentions' results: all of them if they fit, else
       the noisiest that do. TensorRT fuses FP16 attention; a quantiser behind it is a kernel of its own.
    2. What is left of the share goes to the layers whose noise sums to most.

    Args:
        model: The float graph.
        layers: Its layers.
        noise: By node, of the layers in question: noise over signal at the output with that one alone in INT8.
        mixed: The share, and what it is for.
    """
    linear = [layer for layer in layers if layer.node in noise]
    budget = mixed.flops * sum(layer.macs for layer in layers if layer.kind == "linear")
    chosen: dict[str, str] = {}
    if mixed.first == "kernels":
        behind = {attention.output for attention in find_attentions(model)}
        for layer in _fitting([layer for layer in linear if layer.node in behind], noise, budget):
            chosen[layer.node] = "it reads an attention's result, which a quantiser would cost a kernel"
            budget -= layer.macs
    for layer in _fitting([layer for layer in linear if layer.node not in chosen], noise, budget):
        chosen[layer.node] = "of what fits, it is among the layers whose noise sums to most"
    return {node: f"{reason}; {_alone(noise[node])}" for node, reason in chosen.items()}


def _fitting(layers: Sequence[GraphLayer], noise: Mapping[str, float], budget: float) -> list[GraphLayer]:
    known = [layer for layer in layers if layer.macs]
    if sum(layer.macs for layer in known) <= budget:
        return known
    chosen = best_choice([noise[layer.node] for layer in known], [layer.macs for layer in known], budget)
    return [known[index] for index in chosen]


def _alone(noise: float) -> str:
    if noise <= 0:
        return "alone in INT8 it changes nothing"
    return f"alone in INT8 it leaves {-10 * math.log10(noise):.1f} dB"


def _few(source: DataSource) -> DataSource:
    count = min(len(source), _SAMPLES)
    return Selection(source=source, indices=sorted({index * len(source) // count for index in range(count)}))
