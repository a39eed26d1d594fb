"""The 2:4 check of a graph's weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import (
    MODEL,
    Recipe,
    SparsityRecord,
    SparsityReport,
    load_recipe,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import GraphLayer, map_model, release, weight_rows, weighted_layers
from gpusq_deploy.numerics import LayerWeight
from gpusq_deploy.sparsity.check import sparsity_report


def graph_weights(model: ir.Model, layers: Iterable[GraphLayer]) -> Iterator[LayerWeight]:
    """The layers' stored weights as the 2:4 check sees them, one at a time: a mapped one is let go for the next."""
    for layer in layers:
        rows = weight_rows(model, layer)
        yield LayerWeight(
            layer=layer.layer,
            tensor=layer.weight,
            kind=layer.kind,
            rows=rows,
            positions=len(rows) // max(layer.n, 1),
            macs=layer.macs,
        )
        release(model.graph.initializers[layer.weight])


def graph_sparsity(
    model: ir.Model, *, source: str, recipe: Recipe, record: SparsityRecord | None = None, only_seen: bool = False
) -> SparsityReport:
    """The 2:4 state of all weights of a graph; see `sparsity_report` and `weighted_layers`."""
    layers = weighted_layers(model, only_seen=only_seen)
    return sparsity_report(graph_weights(model, layers), source=source, recipe=recipe, record=record)


def require_same_sparsity(model: Path, built: SparsityReport) -> None:
    """Refuse weights that aren't 2:4 where the plan was built from ones that were.

    Args:
        model: The ONNX model whose weights are to go into the plan.
        built: The 2:4 state of the weights that the plan was built from.

    Raises:
        GpusqError: A layer is missing, has another shape, or is no longer 2:4; all of them at once.
    """
    graph = map_model(model)
    weights = graph_weights(graph, weighted_layers(graph))
    report = sparsity_report(weights, source=model.name, recipe=load_recipe(None), record=None)
    now = {state.layer: state for state in report.layers}
    problems: list[str] = []
    for before in built.layers:
        state = now.get(before.layer)
        if state is None:
            problems.append(f"{before.layer} is missing")
        elif (state.n, state.k) != (before.n, before.k):
            problems.append(f"{before.layer} is {state.n} x {state.k}, not {before.n} x {before.k}")
        elif before.valid and not state.valid:
            problems.append(f"{before.layer} is no longer 2:4: {state.violations} of {state.groups} groups")
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise GpusqError(
            "these weights don't fit the plan: " + "; ".join(problems[:5]) + more,
            place=str(model),
            hint="build a new plan with gpusq-build; for 2:4 weights see gpusq-compress",
        )


def sparsity_kept(built: ir.Model, stored: SparsityReport, recipe: Recipe) -> SparsityReport:
    """The 2:4 state of the weights that will run, with the checkpoint's expectations.

    Raises:
        AssertionError: A pass broke what was valid in the checkpoint: our bug.
    """
    before = {state.layer: state for state in stored.layers}
    after = graph_sparsity(built, source=MODEL, recipe=recipe).layers
    lost = [state.layer for state in after if before[state.layer].valid and not state.valid]
    if lost:
        raise AssertionError(f"the passes broke 2:4 in {', '.join(lost)}")
    expected = (
        msgspec.structs.replace(state, expected=before[state.layer].expected, reason=before[state.layer].reason)
        for state in after
    )
    return SparsityReport(source=MODEL, layers=tuple(expected))
