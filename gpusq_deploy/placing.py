"""A float graph ready for its plan, with ranges also for what the recipe quantises beyond the inputs of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts.calibration import CalibrationTable
from gpusq_deploy.artifacts.plan import Plan
from gpusq_deploy.calibration.int4 import fitted_weights, layers_to_fit
from gpusq_deploy.calibration.observe import Observing
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import GraphLayer
from gpusq_deploy.passes.quantize import STORED_TYPE, RoundedWeight
from gpusq_deploy.placements import (
    PlacedSite,
    Placements,
    attentions_to_quantize,
    residual_sites,
    residuals_to_quantize,
    sites_of,
)
from gpusq_deploy.quantisation import Ready, Wanted, make_ready, rounded_weights
from gpusq_deploy.ranges import Data, Subject, calibrated
from gpusq_deploy.ranks import Ranks
from gpusq_deploy.recipe import Recipe
from gpusq_deploy.request import Reporter

# Each holds the activations of a sample while its channels are added up.
MOST_WORKERS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What the plan is made from.

    Attributes:
        model: The float graph; smoothed, where `ready` isn't None.
        layers: Its weighted layers.
        table: Ranges; None where nothing is quantised.
        placements: What is quantised beyond the inputs of layers.
        ready: What calibration found; None where nothing is quantised.
    """

    model: ir.Model
    layers: tuple[GraphLayer, ...]
    table: CalibrationTable | None
    placements: Placements
    ready: Ready | None


def prepare(
    model: ir.Model, layers: tuple[GraphLayer, ...], wanted: Wanted, data: Data, subject: Subject, reporter: Reporter
) -> Prepared:
    """Make the graph ready where anything is to be quantised; see `make_ready` and `place`."""
    if not wanted.layers:
        return Prepared(model=model, layers=layers, table=None, placements=Placements(), ready=None)
    ready, placements = place(
        make_ready(model, wanted, data, subject, reporter), wanted.recipe, data, subject, reporter
    )
    return Prepared(model=ready.model, layers=ready.layers, table=ready.table, placements=placements, ready=ready)


def fitted(
    prepared: Prepared, plan: Plan, recipe: Recipe, data: Data, subject: Subject, reporter: Reporter
) -> dict[str, RoundedWeight]:
    """Weights that are rounded with regard to the data, by node. INT4 ones have a pass over it of their own.

    Without data INT4 weights are rounded to nearest, and that is said.
    """
    weights = {} if prepared.ready is None else rounded_weights(prepared.ready, plan, recipe)
    layers = layers_to_fit(prepared.layers, plan, recipe)
    if not layers:
        return weights
    if not data.real:
        reporter.say("there is no --calib: INT4 weights are rounded to nearest")
        return weights
    how = Observing(
        preprocessing=subject.preprocessing,
        workers=min(Ranks().workers(), MOST_WORKERS),
        moments={layer.input: True for layer in layers},
    )
    moments = calibrated(prepared.model, layers, data.calibrate, subject, how, reporter).moments
    return {**weights, **fitted_weights(prepared.model, layers, moments, recipe, stored=STORED_TYPE[plan.remainder])}


def place(ready: Ready, recipe: Recipe, data: Data, subject: Subject, reporter: Reporter) -> tuple[Ready, Placements]:
    """What the recipe places beyond layers, and the ranges with those of it; new ones are largest magnitudes.

    Raises:
        GpusqError: The recipe's placement decides nothing, or there is no data to find its ranges on.
    """
    attentions = attentions_to_quantize(ready.model, recipe)
    residuals = residuals_to_quantize(ready.model, recipe)
    sites = (*sites_of(attentions, recipe), *residual_sites(residuals, recipe))
    if not sites:
        return ready, Placements()
    if not data.real:
        raise GpusqError(
            "a placement beyond layers needs ranges that neither the checkpoint nor --ranges holds",
            place=f"recipe {recipe.name}",
            hint="add --calib FOLDER",
        )
    where = f"{len(attentions)} attentions and {len(residuals)} residual adds"
    reporter.say(f"{len(sites)} activations of {where} are INT8 too: looking at the data again")
    known = ready.table.by_tensor()
    unknown = {site.tensor: site for site in sites if site.tensor not in known}
    found = _ranges(ready.model, [*unknown.values()], data, subject, reporter)
    table = msgspec.structs.replace(ready.table, ranges=(*ready.table.ranges, *found.ranges))
    return replace(ready, table=table), Placements(sites=sites, attentions=attentions)


def _ranges(
    model: ir.Model, sites: Sequence[PlacedSite], data: Data, subject: Subject, reporter: Reporter
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
