"""What a checkpoint's producer recorded, as far as a build heeds it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts import Recipe, RecordedRecipe, TrainedLayer
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.frontend import Checkpoint, array_from_tensor, reference_outputs, with_offsets
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import Grid
from gpusq_deploy.text import counted


def heeded(checkpoint: Checkpoint, request: BuildRequest, reporter: Reporter) -> Checkpoint:
    """The checkpoint without what was asked to be set aside, which is said.

    1. A recipe that the user names decides what is quantised, whatever the producer left in floating point.
    2. `recalibrate` sets recorded ranges and grids aside; what the producer left in floating point stays so.
    3. Without `keep_grid` scales of weights are computed anew.
    4. What inputs were quantised about moves out of INT8 layers, unless other ranges, pruned weights or another recipe
       than the usual one are asked for.
    """
    record, said = checkpoint.quantizers, list[str]()
    if request.own_recipe and record.producer:
        said.append(f"--recipe decides what is quantised, not what {record.producer} did")
        record = replace(record, producer="", floats={}, types={})
    if request.recalibrate and (checkpoint.ranges or record.problems or record.grids):
        ranges, grids = len(checkpoint.ranges) + len(record.problems), len(record.grids)
        counts = " and ".join(counted(count, what) for count, what in ((ranges, "range"), (grids, "grid")) if count)
        verb = "is" if ranges + grids == 1 else "are"
        said.append(f"--recalibrate: the {counts} that the checkpoint records {verb} not used")
        record = replace(record, producer="", problems={}, types={}, grids={})
        checkpoint = replace(checkpoint, ranges={}, origins={})
    if not request.keep_grid and record.grids:
        said.append("--no-keep-grid: scales of weights are computed anew")
        record = replace(record, grids={})
    found = replace(checkpoint, quantizers=record, remarks=(*checkpoint.remarks, *said))
    if _as_it_ran(request):
        found = with_offsets(found, lambda: reference_outputs(checkpoint, _zeros(checkpoint)))
    for remark in found.remarks[len(checkpoint.remarks) :]:
        reporter.say(remark)
    return found


def _zeros(checkpoint: Checkpoint) -> npt.NDArray[np.float32]:
    return np.zeros((1, *checkpoint.preprocessing.sample_shape), np.float32)


def _as_it_ran(request: BuildRequest) -> bool:
    """Whether INT8 layers are to be what the producer made of them."""
    return request.quantize and request.recipe is None and request.ranges is None and request.prune is None


def grids_of(checkpoint: Checkpoint) -> dict[str, Grid]:
    """The recorded grids of weights, by layer."""
    return {
        layer: Grid(
            amax=array_from_tensor(grid.amax),
            largest=array_from_tensor(grid.largest),
            total=array_from_tensor(grid.total),
            kind=grid.kind,
            block=grid.block,
            narrow=grid.narrow,
        )
        for layer, grid in checkpoint.quantizers.grids.items()
    }


def recorded_recipe(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """The recipe, but for what the checkpoint's producer made of layers, or left in floating point."""
    record, ranges = checkpoint.quantizers, checkpoint.ranges
    if not (record.producer or record.floats):
        return recipe

    def why_float(layer: str, precision: str) -> str:
        return record.why_float(layer, ranges, precision)

    def trained(layer: str) -> TrainedLayer | None:
        found = record.trained(layer, ranges)
        if found is None:
            return None
        precision, block = found
        sharing = "" if block is None else f", a scale for {block} inputs"
        return TrainedLayer(precision, block, f"{record.producer} quantised it to {precision.upper()}{sharing}")

    return RecordedRecipe.of(recipe, why_float, trained)
