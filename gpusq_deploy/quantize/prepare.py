"""From what was observed to what the plan is made from: the smoothed graph, its ranges, and what else is quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import CalibrationTable, QuantPlan, Recipe, TensorRange
from gpusq_deploy.calibration import ChannelMoments, Observations
from gpusq_deploy.graph import (
    STORED_TYPE,
    GraphLayer,
    Moved,
    PassLog,
    RoundedWeight,
    Smooth,
    SmoothedTensor,
    moved_tensors,
    run_passes,
    weighted_layers,
)
from gpusq_deploy.numerics import MOST_ADDERS, cpu_workers
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize.int4_rounding import fitted_weights, layers_to_fit
from gpusq_deploy.quantize.int8_outputs import Int8Outputs, choose_outputs, output_candidates, output_site
from gpusq_deploy.quantize.needs import mixable, product_amax, value_amax
from gpusq_deploy.quantize.noise_model import LayerStatistics, StatisticsRequest, statistics_request
from gpusq_deploy.quantize.quant_request import QuantRequest
from gpusq_deploy.quantize.sites import (
    ActivationSites,
    QdqSite,
    attentions_to_quantize,
    residual_sites,
    residuals_to_quantize,
    sites_of,
)
from gpusq_deploy.quantize.smoothing import (
    decide_smoothing,
    moments_behind,
    places_to_smooth,
    rule_of,
    table_behind,
    with_headroom,
)
from gpusq_deploy.quantize.weight_rounding import round_weights
from gpusq_deploy.text import by_reason, counted, some


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanInputs:
    """What the plan is made from.

    Attributes:
        model: Computes what the float graph computes, with smoothed activations where any are.
        layers: Its weighted layers.
        table: Ranges of the activations that are to be quantised; None where nothing is.
        placements: What is quantised beyond the inputs of layers.
        moments: By node, of the inputs of layers in that graph, where they were needed.
        statistics: For a mixed recipe, what was seen of residual streams.
        moved: Tensors that smoothing changed, by name; see `moved_tensors`.
        smoothed: The smoothing.
    """

    model: ir.Model
    layers: tuple[GraphLayer, ...]
    table: CalibrationTable | None = None
    placements: ActivationSites = field(default_factory=ActivationSites)
    moments: Mapping[str, ChannelMoments] = field(default_factory=dict[str, ChannelMoments])
    statistics: LayerStatistics | None = None
    moved: Mapping[str, Moved | None] = field(default_factory=dict[str, "Moved | None"])
    smoothed: tuple[SmoothedTensor, ...] = ()


def plan_inputs(
    model: ir.Model,
    request: QuantRequest,
    seen: Observations,
    reporter: Reporter,
    log: PassLog | None = None,
) -> PlanInputs:
    """Smooth the graph and find its ranges where anything is to be quantised, beyond the inputs of layers too.

    Args:
        model: The float graph; left as it is.
        request: Layers, recipe and calibrators.
        seen: Answers `observations_needed` of that graph.
        reporter: Hears what is smoothed, what isn't, and why.
        log: Hears the pass.
    """
    if not request.layers:
        return PlanInputs(model=model, layers=weighted_layers(model))
    if request.known is None:
        inputs = _smoothed(model, request, seen, reporter, log or PassLog())
    else:
        inputs = _with_known(model, request, request.known, seen)
        if any(rule_of(request.recipe, layer).refined for layer in request.layers):
            reporter.say("ranges were given: activations are not smoothed, weights are rounded to nearest")
    inputs = _with_sites(inputs, model, request.recipe, seen)
    if request.outputs is not None:
        inputs = _with_outputs(inputs, model, request.recipe, request.outputs, seen)
        written = sum(choice.chosen for choice in inputs.placements.outputs)
        if inputs.placements.outputs:
            reporter.say(f"{written} of {counted(len(inputs.placements.outputs), 'layer')} write INT8 outputs")
    return inputs


def rounded_weights(
    inputs: PlanInputs, plan: QuantPlan, recipe: Recipe, seen: Observations, reporter: Reporter
) -> dict[str, RoundedWeight]:
    """Weights that are rounded with regard to the data, by node; without data to nearest, and that is said."""
    workers = cpu_workers(MOST_ADDERS)
    weights = round_weights(inputs.model, inputs.layers, plan, inputs.moments, recipe, workers=workers)
    layers = layers_to_fit(inputs.layers, plan, recipe)
    if not layers:
        return weights
    if any(layer.input not in seen.moments for layer in layers):
        reporter.say("no --calib: INT4 weights are rounded to nearest")
        return weights
    stored = STORED_TYPE[plan.float_type]
    return {**weights, **fitted_weights(inputs.model, layers, seen.moments, recipe, stored=stored)}


def _with_known(model: ir.Model, request: QuantRequest, known: CalibrationTable, seen: Observations) -> PlanInputs:
    """The graph as it is, with ranges that were found before."""
    statistics = _statistics(model, request)
    return PlanInputs(
        model=model,
        layers=weighted_layers(model),
        table=_for_layers(known, request.layers),
        statistics=None if statistics is None else statistics.stream(seen.moments),
    )


def _smoothed(
    model: ir.Model, request: QuantRequest, seen: Observations, reporter: Reporter, log: PassLog
) -> PlanInputs:
    """The smoothed graph with its ranges, and what becomes of the channels' moments."""
    assert seen.table is not None, "ranges that aren't known are observed"
    recipe = request.recipe
    places, declined = places_to_smooth(model, request.layers, recipe, request.calibrators)
    smoothed = decide_smoothing(model, places, seen.moments, recipe, stored=STORED_TYPE[request.float_type])
    _say(smoothed, declined, reporter)
    ready = run_passes(model, [Smooth(smoothed)], after=log.after(model))
    layers = weighted_layers(ready)
    now = {layer.node: layer for layer in layers}
    inside = {layer.input: now[layer.node].input for layer in request.layers}
    found = moments_behind({name: seen.moments[name] for name in inside if name in seen.moments}, smoothed)
    return PlanInputs(
        model=ready,
        layers=layers,
        table=with_headroom(
            table_behind(_for_layers(seen.table, request.layers), smoothed, found, inside),
            [now[layer.node] for layer in request.layers],
            recipe,
            smoothed,
            {inside[tensor]: calibrator for tensor, calibrator in request.calibrators.items() if tensor in inside},
        ),
        moments={layer.node: found[layer.input] for layer in request.layers if layer.input in found},
        statistics=_statistics_behind(model, request, seen, found),
        moved=moved_tensors(model, smoothed),
        smoothed=smoothed,
    )


def _statistics(model: ir.Model, request: QuantRequest) -> StatisticsRequest | None:
    """What a mixed recipe looks at; None for another."""
    if request.recipe.mixed is None:
        return None
    return statistics_request(model, mixable(request.layers, request.recipe))


def _statistics_behind(
    model: ir.Model, request: QuantRequest, seen: Observations, found: Mapping[str, ChannelMoments]
) -> LayerStatistics | None:
    """Moments behind the smoothing, and shares of residual streams, which smoothing leaves alone."""
    statistics = _statistics(model, request)
    if statistics is None:
        return None
    return LayerStatistics(
        moments={layer.node: found[layer.input] for layer in statistics.layers},
        shares=statistics.shares(seen.moments),
    )


def _for_layers(table: CalibrationTable, layers: Sequence[GraphLayer]) -> CalibrationTable:
    """The ranges of the inputs of layers, under the layers' names."""
    known = table.by_tensor()
    ranges: dict[str, TensorRange] = {}
    for layer in layers:
        ranges.setdefault(layer.input, msgspec.structs.replace(known[layer.input], layer=layer.layer))
    return msgspec.structs.replace(table, ranges=tuple(ranges.values()))


def _with_sites(inputs: PlanInputs, model: ir.Model, recipe: Recipe, seen: Observations) -> PlanInputs:
    """What the recipe places beyond layers, and the ranges with those of it: largest magnitudes."""
    attentions = attentions_to_quantize(inputs.model, recipe)
    residuals = residuals_to_quantize(inputs.model, recipe)
    sites = (*sites_of(attentions, recipe), *residual_sites(residuals, recipe))
    if not sites or inputs.table is None:
        return inputs
    known = inputs.table.by_tensor()
    values = {attention.value for attention in attentions}
    ranges = [
        _site_range(site, model, inputs, seen, moved=site.tensor in values)
        for site in {site.tensor: site for site in sites if site.tensor not in known}.values()
    ]
    table = msgspec.structs.replace(inputs.table, ranges=(*inputs.table.ranges, *ranges))
    return replace(inputs, table=table, placements=ActivationSites(sites=sites, attentions=attentions))


def _site_range(site: QdqSite, model: ir.Model, inputs: PlanInputs, seen: Observations, *, moved: bool) -> TensorRange:
    assert seen.table is not None, "sites need ranges, which are observed"
    entry = seen.table.by_tensor()[site.tensor]
    amax = value_amax(model, site.node, inputs.smoothed, seen.moments) if moved else None
    return entry if amax is None else msgspec.structs.replace(entry, amax=amax)


def _with_outputs(
    inputs: PlanInputs, model: ir.Model, recipe: Recipe, outputs: Int8Outputs, seen: Observations
) -> PlanInputs:
    """Which layers are to write INT8, and the ranges with those of their products, with their rules' headroom."""
    candidates = output_candidates(inputs.layers, recipe, outputs.sparsity, outputs.wish)
    if not candidates or inputs.table is None:
        return inputs
    sites = {layer.node: site for layer in candidates if (site := output_site(inputs.model, layer)) is not None}
    amax = {
        site.tensor: product_amax(model, site, inputs.smoothed, seen.moments) * (1 + rule_of(recipe, layer).headroom)
        for layer in candidates
        if (site := sites.get(layer.node)) is not None
    }
    chosen = choose_outputs(inputs.model, candidates, recipe, outputs.wish, (amax, inputs.moments))
    assert seen.table is not None or not amax, "products need ranges, which are observed"
    ranges = [
        TensorRange(
            tensor=choice.tensor,
            layer=f"{choice.layer}, output",
            amax=amax[choice.tensor],
            origin=f"amax over {counted(0 if seen.table is None else seen.table.images, 'sample')}",
        )
        for choice in chosen
        if choice.chosen
    ]
    table = msgspec.structs.replace(inputs.table, ranges=(*inputs.table.ranges, *ranges))
    return replace(inputs, table=table, placements=replace(inputs.placements, outputs=chosen))


def _say(smoothed: Sequence[SmoothedTensor], declined: Sequence[tuple[str, str]], reporter: Reporter) -> None:
    if smoothed:
        reporter.say(f"smoothed {counted(len(smoothed), 'activation')}")
    for reason, layers in by_reason(declined).items():
        reporter.say(f"not smoothed: the input of {some(layers, 1)}: {reason}")
