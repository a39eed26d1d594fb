"""Collect the ranges that planning needs: layer inputs, attention operands, residual adds and layer outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import (
    CalibrationTable,
    FloatPrecision,
    QuantPlan,
    Recipe,
    TensorRange,
)
from gpusq_deploy.calibration import (
    CalibrationInputs,
    ModelFacts,
    Observing,
    Ranks,
    calibrated,
    few,
    largest_magnitudes,
)
from gpusq_deploy.engines import open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import STORED_TYPE, GraphLayer, RoundedWeight
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize.fp16_overflow import Fp16Overflow, fp16_overflow_in, text_of
from gpusq_deploy.quantize.int4_rounding import fitted_weights, layers_to_fit
from gpusq_deploy.quantize.int8_outputs import Int8Outputs, choose_outputs, output_candidates, output_site
from gpusq_deploy.quantize.sites import (
    ActivationSites,
    Int8OutputDecision,
    QdqSite,
    attentions_to_quantize,
    residual_sites,
    residuals_to_quantize,
    sites_of,
)
from gpusq_deploy.quantize.smooth_and_range import QuantRequest, SmoothedGraph, rounded_weights, smooth_and_observe
from gpusq_deploy.quantize.smoothing import rule_of
from gpusq_deploy.text import counted, some


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanInputs:
    """What the plan is made from.

    Attributes:
        model: The float graph; smoothed, where `ready` isn't None.
        layers: Its weighted layers.
        subject: What it was made from, for further looks at the data.
        table: Ranges; None where nothing is quantised.
        placements: What is quantised beyond the inputs of layers.
        ready: What calibration found; None where nothing is quantised.
    """

    model: ir.Model
    layers: tuple[GraphLayer, ...]
    subject: ModelFacts
    table: CalibrationTable | None
    placements: ActivationSites
    ready: SmoothedGraph | None


def plan_inputs(
    model: ir.Model,
    layers: tuple[GraphLayer, ...],
    wanted: QuantRequest,
    data: CalibrationInputs,
    subject: ModelFacts,
    reporter: Reporter,
) -> PlanInputs:
    """Smooth the graph and find its ranges where anything is to be quantised, beyond the inputs of layers too."""
    if not wanted.layers:
        return PlanInputs(
            model=model, layers=layers, subject=subject, table=None, placements=ActivationSites(), ready=None
        )
    ready, placements = observe_sites(
        smooth_and_observe(model, wanted, data, subject, reporter), wanted.recipe, data, subject, reporter
    )
    if wanted.outputs is not None:
        ready, chosen = observe_outputs(ready, wanted.recipe, wanted.outputs, data, subject, reporter)
        placements = replace(placements, outputs=chosen)
    return PlanInputs(
        model=ready.model,
        layers=ready.layers,
        subject=subject,
        table=ready.table,
        placements=placements,
        ready=ready,
    )


def fitted(
    prepared: PlanInputs, plan: QuantPlan, recipe: Recipe, data: CalibrationInputs, reporter: Reporter
) -> dict[str, RoundedWeight]:
    """Weights that are rounded with regard to the data, by node. INT4 ones have a pass over it of their own.

    Without data INT4 weights are rounded to nearest, and that is said.
    """
    weights = {} if prepared.ready is None else rounded_weights(prepared.ready, plan, recipe)
    layers = layers_to_fit(prepared.layers, plan, recipe)
    if not layers:
        return weights
    if not data.real:
        reporter.say("no --calib: INT4 weights are rounded to nearest")
        return weights
    how = Observing(
        preprocessing=prepared.subject.preprocessing,
        workers=Ranks().adders(),
        moments={layer.input: True for layer in layers},
    )
    moments = calibrated(prepared.model, layers, data.calibrate, prepared.subject, how, reporter).moments
    return {**weights, **fitted_weights(prepared.model, layers, moments, recipe, stored=STORED_TYPE[plan.float_type])}


def observe_sites(
    ready: SmoothedGraph, recipe: Recipe, data: CalibrationInputs, subject: ModelFacts, reporter: Reporter
) -> tuple[SmoothedGraph, ActivationSites]:
    """What the recipe places beyond layers, and the ranges with those of it; new ones are largest magnitudes.

    Raises:
        GpusqError: The recipe's placement decides nothing, or there is no data to find its ranges on.
    """
    attentions = attentions_to_quantize(ready.model, recipe)
    residuals = residuals_to_quantize(ready.model, recipe)
    sites = (*sites_of(attentions, recipe), *residual_sites(residuals, recipe))
    if not sites:
        return ready, ActivationSites()
    if not data.real:
        raise GpusqError(
            "a placement beyond layers needs ranges that neither the checkpoint nor --ranges holds",
            place=f"recipe {recipe.name}",
            hint="add --calib FOLDER",
        )
    where = f"{counted(len(attentions), 'attention')} and {counted(len(residuals), 'residual add')}"
    reporter.say(f"calibrating {counted(len(sites), 'activation')} of {where} (second pass over the calibration data)")
    known = ready.table.by_tensor()
    unknown = {site.tensor: site for site in sites if site.tensor not in known}
    found = _ranges(ready.model, [*unknown.values()], data, subject, reporter)
    table = msgspec.structs.replace(ready.table, ranges=(*ready.table.ranges, *found.ranges))
    return replace(ready, table=table), ActivationSites(sites=sites, attentions=attentions)


def observe_outputs(
    ready: SmoothedGraph,
    recipe: Recipe,
    outputs: Int8Outputs,
    data: CalibrationInputs,
    subject: ModelFacts,
    reporter: Reporter,
) -> tuple[SmoothedGraph, tuple[Int8OutputDecision, ...]]:
    """Which layers are to write INT8, and the ranges with those of their products, with their rules' headroom.

    Raises:
        GpusqError: There is no data to find those ranges on.
    """
    candidates = output_candidates(ready.layers, recipe, outputs.sparsity, outputs.wish)
    sites = [site for layer in candidates if (site := output_site(ready.model, layer)) is not None]
    if not candidates:
        return ready, ()
    if sites and not data.real:
        raise GpusqError(
            "INT8 outputs need ranges that neither the checkpoint nor --ranges holds",
            place=f"recipe {recipe.name}",
            hint="add --calib FOLDER",
        )
    found: tuple[TensorRange, ...] = ()
    if sites:
        layers = counted(len(sites), "layer")
        reporter.say(f"calibrating the outputs of {layers} that may write INT8 (second pass over the calibration data)")
        found = _ranges(ready.model, sites, data, subject, reporter).ranges
    headroom = {layer.layer: rule_of(recipe, layer).headroom for layer in candidates}
    ranges = [
        msgspec.structs.replace(entry, amax=entry.amax * (1 + headroom[site.module]))
        for entry, site in zip(found, sites, strict=True)
    ]
    amax = {entry.tensor: entry.amax for entry in ranges}
    chosen = choose_outputs(ready.model, candidates, recipe, outputs.wish, (amax, ready.moments))
    kept = {choice.tensor for choice in chosen if choice.chosen}
    reporter.say(f"{len(kept)} of {counted(len(candidates), 'layer')} write INT8 outputs")
    table = msgspec.structs.replace(
        ready.table, ranges=(*ready.table.ranges, *(entry for entry in ranges if entry.tensor in kept))
    )
    return replace(ready, table=table), chosen


def _ranges(
    model: ir.Model, sites: Sequence[QdqSite], data: CalibrationInputs, subject: ModelFacts, reporter: Reporter
) -> CalibrationTable:
    """The observer looks at inputs of layers: each tensor gets a layer that stands for it."""
    stand_ins = [
        GraphLayer(
            layer=f"{site.module}, {site.role}",
            node=site.node,
            kind="linear",
            input=site.tensor,
            weight="",
            channel_axis=0,
            n=0,
            k=0,
            macs=0,
        )
        for site in sites
    ]
    return calibrated(model, stand_ins, data.calibrate, subject, Observing(workers=Ranks().workers()), reporter).table


def find_fp16_overflow(
    model: ir.Model,
    table: CalibrationTable | None,
    data: CalibrationInputs,
    float_type: FloatPrecision,
    reporter: Reporter,
) -> Fp16Overflow:
    """What of the graph FP16 can't hold; nothing where the float type isn't FP16.

    Magnitudes are those of the ranges that are known, and those seen on a few of the samples, if there are any.
    """
    if float_type != "fp16":
        return Fp16Overflow()
    seen = {} if table is None else {entry.tensor: (entry.amax, entry.origin) for entry in table.ranges}
    if data.real:
        source = few(data.calibrate)
        origin = f"seen on {counted(len(source), 'sample')} of {source.name}"
        for tensor, amax in largest_magnitudes(model, source, open_model=open_onnx).items():
            if amax > seen.get(tensor, (0.0, ""))[0]:
                seen[tensor] = (amax, origin)
    wide = fp16_overflow_in(model, seen, looked=data.real)
    if wide.tensors:
        # Activations first: where a model overflows says more than which of its constants do.
        kept = some([text_of(tensor) for tensor in sorted(wide.tensors, key=lambda tensor: tensor.constant)], 1)
        reporter.say(f"kept in FP32, since FP16 can't hold {'it' if len(wide.tensors) == 1 else 'them'}: {kept}")
    return wide
