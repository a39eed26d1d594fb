"""INT8 weights on the grid that they were trained on, instead of one computed anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import LayerDecision, QuantPlan, parts_of
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import STORED_TYPE, RoundedWeight, array_of
from gpusq_deploy.numerics import quantize, scale_from_amax
from gpusq_deploy.quantize.mixed_precision import PlannedWeights
from gpusq_deploy.text import by_reason, counted, some

# Of float32 sums over a channel, in other orders.
_ALIKE = 1e-4
_CHANGED = "the graph's weights are not the checkpoint's, channel by channel"


class Grid(NamedTuple):
    """A weight's grid by output channel, [N] each: round(127 · w / amax) are codes; max |w| and Σ|w| as it was read."""

    amax: npt.NDArray[np.float32]
    largest: npt.NDArray[np.float32]
    total: npt.NDArray[np.float32]


def with_kept_grids(planned: PlannedWeights, model: ir.Model, grids: Mapping[str, Grid]) -> PlannedWeights:
    """The plan and its weights with those of INT8 layers on their recorded grids.

    1. A graph may scale output channels, as folding an attention's scale or a BatchNorm does: the grid is scaled alike.
    2. Where weights were changed otherwise, or all channels need one scale, the grid isn't kept, and the plan says so.
    3. Merged projections keep theirs where all have one.

    Args:
        planned: The plan, and weights rounded for it.
        model: The graph that it is about.
        grids: By the checkpoint's names of layers.

    Raises:
        GpusqError: A grid's scale can't be stored in the float type.
    """
    rounded: dict[str, RoundedWeight] = {}
    declined: list[tuple[str, str]] = []
    for decision in planned.plan.layers:
        parts = [grids.get(part) for part in parts_of(decision.layer)]
        known = [part for part in parts if part is not None]
        if decision.precision != "int8" or decision.weight is None or len(known) < len(parts):
            continue
        found = "one scale for all channels was asked for" if decision.weight.one_scale else None
        kept = found or _on_grid(decision, model, _joined(known), planned.plan)
        if isinstance(kept, str):
            declined.append((decision.layer, kept))
        else:
            rounded[decision.node] = kept
    notes = (*planned.plan.notes, *_notes(rounded, declined))
    plan = msgspec.structs.replace(planned.plan, notes=notes)
    return PlannedWeights(plan=plan, rounded={**planned.rounded, **rounded})


def _joined(grids: list[Grid]) -> Grid:
    return Grid(*(np.concatenate(parts) for parts in zip(*grids, strict=True)))


def _on_grid(decision: LayerDecision, model: ir.Model, grid: Grid, plan: QuantPlan) -> RoundedWeight | str:
    """The weight on its grid, or why it can't be."""
    weight = decision.weight
    assert weight is not None, "only decisions with a weight come here"
    values: npt.NDArray[Any] = array_of(model.graph.initializers[weight.tensor]).astype(np.float32)
    rows = values if weight.axis == 0 else values.T
    if len(rows) != len(grid.amax):
        return _CHANGED
    magnitudes = np.abs(rows.reshape(len(rows), -1))
    largest = magnitudes.max(axis=1)
    factor = np.divide(largest, grid.largest, out=np.ones_like(largest), where=grid.largest > 0)
    if not np.allclose(magnitudes.sum(axis=1), grid.total * factor, rtol=_ALIKE, atol=1e-12):
        return _CHANGED
    try:
        scale = scale_from_amax(grid.amax * factor, dtype=STORED_TYPE[plan.float_type]).astype(np.float32)
    except ValueError as error:
        raise GpusqError(
            f"the weight's recorded grid can't be kept: {error}",
            place=f"{decision.layer}, tensor {weight.tensor}",
            hint="build with --fp32, or with --no-keep-grid",
        ) from error
    return RoundedWeight(codes=quantize(rows, scale, axis=0), scale=scale, bias=None)


def _notes(rounded: Mapping[str, RoundedWeight], declined: list[tuple[str, str]]) -> Iterator[str]:
    if rounded:
        yield f"weights of {counted(len(rounded), 'layer')} are on the grid that the checkpoint records"
    for reason, layers in by_reason(declined).items():
        yield f"the recorded grid of {some(layers)} is not kept: {reason}"
