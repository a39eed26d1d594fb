"""Observe: what the deciders of a recipe need to see of a float graph, in one pass over the calibration set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpusq_deploy.artifacts import Calibrator, Recipe
from gpusq_deploy.calibration import (
    CalibrationInputs,
    KnownRanges,
    Needs,
    Observations,
    calibrated,
    calibrators_for,
    joined_ranges,
    known_ranges,
    needs_of_layers,
    require_borne_out,
)
from gpusq_deploy.compile.float_graph import FloatGraph
from gpusq_deploy.compile.inputs import facts_of, require_two_four
from gpusq_deploy.compile.recorded import grids_of
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.graph import GraphLayer, weighted_layers
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import (
    Grid,
    Int8Outputs,
    MergedGraph,
    QuantRequest,
    layers_to_quantize,
    observations_needed,
    require_data,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """What a recipe is decided on.

    Attributes:
        recipe: The recipe.
        graph: The float graph in the form that the recipe gives it.
        seen: Everything that was seen of it; also what earlier recipes needed.
        wanted: What is to be quantised, with the ranges that were found before.
        notes: Which rewrites were applied, for the plan.
        grids: Recorded grids of weights that are kept, by the checkpoint's names of layers.
    """

    recipe: Recipe
    graph: MergedGraph
    seen: Observations
    wanted: QuantRequest
    notes: tuple[str, ...] = ()
    grids: Mapping[str, Grid] = field(default_factory=dict[str, Grid])


def observe_graph(
    graph: FloatGraph,
    request: BuildRequest,
    recipe: Recipe,
    data: CalibrationInputs,
    reporter: Reporter,
    seen: Observations | None = None,
) -> Observed:
    """See what the recipe needs that nobody has seen yet.

    Args:
        graph: The float graph.
        request: What is asked.
        recipe: Its recipe.
        data: The calibration set, or ranges found before.
        reporter: Hears what is looked at.
        seen: Of this graph and this data, from another recipe.

    Raises:
        GpusqError: Weights aren't 2:4 that should be; something needs data, and there is none; or see `known_ranges`
            and `observe`.
    """
    merged, seen = graph.for_recipe(recipe), seen or Observations()
    if request.sparse:
        require_two_four(merged.stored, request)
    layers = layers_to_quantize(weighted_layers(merged.model), recipe) if request.quantize else ()
    calibrators = calibrators_for(layers, recipe, usual=request.usual_calibrator)
    known = _known(graph, recipe, data, calibrators, reporter) if layers else None
    wanted = QuantRequest(
        layers=layers,
        recipe=recipe,
        calibrators=calibrators,
        float_type=request.float_type,
        known=None if known is None else known.table,
        outputs=Int8Outputs(wish=request.sparse_outputs, sparsity=merged.stored),
    )
    rest = _reading_alike(() if known is None else known.rest, layers)
    doubtful = _reading_alike(() if known is None else known.doubtful, layers)
    needs = observations_needed(merged.model, wanted) | needs_of_layers((*rest, *doubtful), calibrators)
    if not data.real:
        require_data(needs, recipe, mixed=bool(layers) and recipe.mixed is not None)
        needs = Needs()
    if lacking := seen.lacking(needs):
        facts = facts_of(graph.checkpoint)
        seen = seen.joined(calibrated(merged.model, lacking, data.calibrate, facts, reporter))
    if known is not None and seen.table is not None:
        require_borne_out(known.table, seen.table.by_tensor(), doubtful, source=data.ranges)
        wanted = replace(wanted, known=joined_ranges(known.table, seen.table, rest) if rest else known.table)
    grids = _grids(graph, wanted)
    return Observed(recipe=recipe, graph=merged, seen=seen, wanted=wanted, notes=graph.notes, grids=grids)


def _grids(graph: FloatGraph, wanted: QuantRequest) -> dict[str, Grid]:
    """Recorded grids; what is smoothed for ranges that are found here has other weights."""
    return grids_of(graph.checkpoint) if wanted.known is not None or not wanted.layers else {}


def _known(
    graph: FloatGraph,
    recipe: Recipe,
    data: CalibrationInputs,
    calibrators: Mapping[str, Calibrator],
    reporter: Reporter,
) -> KnownRanges | None:
    """Ranges that were found before, by the layers' own names: projections aren't merged there."""
    layers = layers_to_quantize(weighted_layers(graph.model), recipe)
    return known_ranges(graph.model, layers, data, facts_of(graph.checkpoint), calibrators, reporter)


def _reading_alike(others: Sequence[GraphLayer], layers: tuple[GraphLayer, ...]) -> tuple[GraphLayer, ...]:
    """Of the layers those that read what the others do: projections are merged here, and not there."""
    inputs = {layer.input for layer in others}
    return tuple(layer for layer in layers if layer.input in inputs)
