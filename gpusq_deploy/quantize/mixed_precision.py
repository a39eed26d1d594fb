"""Which layers stay in floating point because INT8 costs too much there, within a share of the FLOPs.

Noise that layers make on their own adds up nearly as if it were independent. So the layers to leave out are those whose
noise (`streams`, or measured by running each alone: `sensitivity`) sums to most within the share: a knapsack.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import onnx_ir as ir

from gpusq_deploy.artifacts import MixedRule, QuantPlan, SparsityReport
from gpusq_deploy.calibration import CalibrationInputs, DataSource, Observing, Ranks, Selection, calibrated
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import GraphLayer, RoundedWeight, find_attentions
from gpusq_deploy.numerics import best_choice
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize.fp16_overflow import Fp16Overflow
from gpusq_deploy.quantize.noise_measured import noise_of_layers
from gpusq_deploy.quantize.noise_model import residual_noise, statistics_request
from gpusq_deploy.quantize.planning import PlanRequest, make_plan
from gpusq_deploy.quantize.prepare import PlanInputs, fitted
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
    prepared: PlanInputs,
    asked: PlanRequest,
    sparsity: SparsityReport,
    wide: Fp16Overflow,
    data: CalibrationInputs,
    reporter: Reporter,
) -> PlannedWeights:
    """Plan, round, and where the recipe is mixed, leave out the layers that cost most and plan again.

    Raises:
        GpusqError: See `make_plan`; or a mixed recipe has no data to measure on.
    """

    def planned(placements: ActivationSites) -> QuantPlan:
        return make_plan(
            prepared.layers, asked, table=prepared.table, sparsity=sparsity, placements=placements, wide=wide
        )

    plan = planned(prepared.placements)
    rounded = fitted(prepared, plan, asked.recipe, data, reporter)
    mixed = asked.recipe.mixed
    if mixed is None or prepared.ready is None:
        return PlannedWeights(plan=plan, rounded=rounded)

    planned_int8 = {decision.node for decision in plan.layers if decision.precision == "int8"}
    candidates = [layer for layer in prepared.layers if layer.kind == "linear" and layer.node in planned_int8]
    budget = mixed.flops * sum(layer.macs for layer in prepared.layers if layer.kind == "linear")
    first = _behind_attentions(prepared.model, mixed)
    noise = _measured(prepared, plan, rounded, candidates, data, reporter)
    if mixed.measure == "output":
        running = contenders(candidates, noise, budget) | first
        reporter.say(f"measuring the output error of {counted(len(running), 'layer')}, each alone in INT8")
        noise = noise_of_layers(
            prepared.model,
            plan,
            rounded,
            _few(data.calibrate),
            lambda done, total: reporter.progress("measuring layers", done, total),
            nodes=running,
        )
    floats = layers_to_keep_float([layer for layer in candidates if layer.node in noise], noise, budget, first, mixed)
    most = f"at most {mixed.flops:.0%} of the Linear layers' FLOPs"
    reporter.say(f"keeping {counted(len(floats), 'layer')} in {asked.float_type.upper()} ({most})")
    plan = planned(replace(prepared.placements, floats=floats))
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


def _measured(
    prepared: PlanInputs,
    plan: QuantPlan,
    rounded: Mapping[str, RoundedWeight],
    candidates: Sequence[GraphLayer],
    data: CalibrationInputs,
    reporter: Reporter,
) -> Mapping[str, float]:
    """Noise that each candidate adds to its stream; where ranges were given, after one look at the data.

    Raises:
        GpusqError: There is no data.
    """
    stream = None if prepared.ready is None else prepared.ready.stream
    if stream is None:
        if not data.real:
            raise GpusqError(
                "a mixed recipe measures what each layer costs, and there is no data to measure on",
                place=f"recipe {plan.recipe}",
                hint="add --calib FOLDER",
            )
        watch = statistics_request(prepared.model, candidates)
        how = Observing(workers=Ranks().adders(), moments=watch.tensors())
        seen = calibrated(prepared.model, candidates, data.calibrate, prepared.subject, how, reporter)
        stream = watch.stream(seen.moments)
    return residual_noise(prepared.model, plan, rounded, stream, workers=Ranks().adders())


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


def _few(source: DataSource) -> DataSource:
    count = min(len(source), _SAMPLES)
    return Selection(source=source, indices=sorted({index * len(source) // count for index in range(count)}))
