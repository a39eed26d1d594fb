"""Weights on the grid that they were trained on, instead of one computed anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import LayerDecision, QuantizedPrecision, QuantPlan, WeightQuantization, parts_of
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import STORED_TYPE, RoundedWeight, array_of
from gpusq_deploy.numerics import (
    INT8_MAX,
    fp8_codes,
    fp8_scale,
    int4_codes,
    int4_scale,
    quantize,
    scale_from_amax,
)
from gpusq_deploy.quantize.mixed_precision import PlannedWeights
from gpusq_deploy.text import by_reason, counted, some

# Of float32 sums over a channel, in other orders.
_ALIKE = 1e-4
# By kind, the scale of a range, and how many steps amax is.
_SCALES = {
    "int8": (scale_from_amax, INT8_MAX),
    "fp8": (fp8_scale, 16),  # steps are a sixteenth of what they are at, or more
    "int4": (int4_scale, 7),
}
_CHANGED = "the graph's weights are not the checkpoint's, channel by channel"


class Grid(NamedTuple):
    """A weight's grid: amax by output channel, [N], or of blocks of `block` inputs, [N, blocks].

    `largest` and `total` are max |w| and Σ|w| of each channel as it was read, [N]. A `narrow` grid has no code below
    that of -amax.
    """

    amax: npt.NDArray[np.float32]
    largest: npt.NDArray[np.float32]
    total: npt.NDArray[np.float32]
    kind: QuantizedPrecision = "int8"
    block: int = 0
    narrow: bool = False


def with_kept_grids(planned: PlannedWeights, model: ir.Model, grids: Mapping[str, Grid]) -> PlannedWeights:
    """The plan and its weights with those of layers on their recorded grids, of the precision that they are planned in.

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
        kinds = {(grid.kind, grid.block) for grid in known}
        if decision.weight is None or len(known) < len(parts) or {kind for kind, _ in kinds} != {decision.precision}:
            continue
        found = _against(decision.weight, {block for _, block in kinds})
        kept = found or _on_grid(decision, model, _joined(known), planned.plan)
        if isinstance(kept, str):
            declined.append((decision.layer, kept))
        else:
            rounded[decision.node] = kept
    notes = (*planned.plan.notes, *_notes(rounded, declined))
    plan = msgspec.structs.replace(planned.plan, notes=notes)
    return PlannedWeights(plan=plan, rounded={**planned.rounded, **rounded})


def _joined(grids: list[Grid]) -> Grid:
    amax, largest, total = (np.concatenate([grid[place] for grid in grids]) for place in range(3))
    return Grid(amax, largest, total, grids[0].kind, grids[0].block, all(grid.narrow for grid in grids))


def _against(weight: WeightQuantization, blocks: set[int]) -> str:
    """Why the plan has no room for the grid; empty where it has."""
    if weight.one_scale:
        return "one scale for all channels was asked for"
    if weight.block and (len(blocks) > 1 or any(block % weight.block for block in blocks)):
        sizes = " and ".join(map(str, sorted(blocks)))
        return f"its scales are for {sizes} inputs, those of the plan for {weight.block}"
    return ""


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
        return _coded(rows, grid, factor, weight.block, STORED_TYPE[plan.float_type])
    except ValueError as error:
        raise GpusqError(
            f"the weight's recorded grid can't be kept: {error}",
            place=f"{decision.layer}, tensor {weight.tensor}",
            hint="build with --fp32, or with --no-keep-grid",
        ) from error


def _coded(
    rows: npt.NDArray[np.float32], grid: Grid, factor: npt.NDArray[np.float32], block: int, stored: npt.DTypeLike
) -> RoundedWeight:
    """Codes of a weight [N, …] whose channels were scaled by `factor` [N]; INT4's in blocks of `block` inputs.

    The codes are those of the grid as it was recorded, not of its scales in the float type: these are off by the same
    small share for a whole channel, where codes that round otherwise are off by a step each. A scale that is so small
    that the float type has nothing near it gets codes of its own.

    Raises:
        ValueError: A scale overflows `stored`.
    """
    shaped = factor if grid.amax.ndim == 1 else factor[:, None]
    amax = (grid.amax * shaped).astype(np.float32)
    if grid.kind == "int4":
        amax = np.repeat(amax, grid.block // block, axis=1)
    scale_of, largest = _SCALES[grid.kind]
    exact, scale = (scale_of(amax, dtype=kind).astype(np.float32) for kind in (np.float32, stored))
    step = np.where(np.abs(scale - exact) * largest <= exact / 2, exact, scale)
    if grid.kind == "int4":
        return RoundedWeight(codes=int4_codes(rows, step), scale=scale, bias=None)
    if grid.kind == "fp8":
        return RoundedWeight(codes=fp8_codes(rows, step, axis=0), scale=scale, bias=None)
    lowest = -INT8_MAX if grid.narrow else -INT8_MAX - 1
    return RoundedWeight(codes=quantize(rows, step, axis=0, lowest=lowest), scale=scale, bias=None)


def _notes(rounded: Mapping[str, RoundedWeight], declined: list[tuple[str, str]]) -> Iterator[str]:
    if rounded:
        yield f"weights of {counted(len(rounded), 'layer')} are on the grid that the checkpoint records"
    for reason, layers in by_reason(declined).items():
        yield f"the recorded grid of {some(layers)} is not kept: {reason}"
