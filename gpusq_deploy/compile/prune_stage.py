"""Prune where a build asks for it, and measure what that alone costs: the verification compares with what is left."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts import PruningLoss, Recipe
from gpusq_deploy.bundle import compared_text, pruning_doubts
from gpusq_deploy.calibration import Batches, DataSource, split_source
from gpusq_deploy.compile.compare_graphs import Fed, Seen
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.compile.verify import figures_of, samples_text
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import Checkpoint, reference_outputs
from gpusq_deploy.graph import SampleAxes
from gpusq_deploy.progress import Reporter
from gpusq_deploy.sparsity import Pruning, prune_checkpoint

_BATCH = 4
# The first is compared, whatever the model calls it.
_OUTPUT = "output"


class PrunedCheckpoint(NamedTuple):
    """The checkpoint that the build goes on with, and what pruning cost; None where nothing was pruned."""

    checkpoint: Checkpoint
    loss: PruningLoss | None


def prune_as_asked(
    checkpoint: Checkpoint, request: BuildRequest, recipe: Recipe, samples: DataSource, reporter: Reporter
) -> PrunedCheckpoint:
    """Prune to what the recipe expects, where that was asked, on those of the samples that verification won't use.

    Raises:
        GpusqError: Nothing to prune, layers that are 2:4 already, or data that can't be read.
    """
    if request.prune is None:
        return PrunedCheckpoint(checkpoint, None)
    rest, apart, held_out = split_source(samples)
    how = Pruning(method=request.prune, permute=request.permute)
    source = None if request.prune == "magnitude" else rest
    pruned = prune_checkpoint(checkpoint, recipe, how, source, reporter.say)
    measured = pruning_loss(checkpoint, pruned, apart, held_out=held_out, reporter=reporter)
    loss = msgspec.structs.replace(measured, method=request.prune)
    reporter.say(f"pruned: {compared_text(loss)}")
    for doubt in pruning_doubts(loss):
        reporter.say(f"warning: {doubt}")
    return PrunedCheckpoint(pruned, loss)


def pruning_loss(
    dense: Checkpoint, pruned: Checkpoint, source: DataSource, *, held_out: bool, reporter: Reporter
) -> PruningLoss:
    """Run both models on every sample, and compare their first outputs; two axes are taken for [N, classes].

    Args:
        dense: The model before pruning.
        pruned: The model after it.
        source: Samples to compare on.
        held_out: Whether pruning has not seen them.
        reporter: Hears how many of the samples are done.

    Raises:
        GpusqError: No sample can be read, an output isn't a tensor, or holds NaN or infinity.
    """
    seen = Seen(axes=SampleAxes(known={}, open={_OUTPUT: None}))
    for batch in (batches := Batches(source=source, size=_BATCH)):
        expected, got = (_first(each, batch) for each in (dense, pruned))
        if not all(np.isfinite(answer[_OUTPUT]).all() for answer in (expected, got)):
            raise GpusqError(
                "the dense or the pruned model answers with NaN or infinity: what pruning costs can't be measured",
                place=str(dense.arch),
                hint="check the checkpoint's weights, and that the samples are normalised as the model expects",
            )
        if seen.axes.open:
            seen.axes = seen.axes.found(expected, _first(dense, np.roll(batch, -1, axis=0)), len(batch))
        seen.add(Fed(batch, len(batch)), expected, got)
        reporter.progress("comparing with the dense model", batches.count, len(source))
    found = seen.result()
    figures = figures_of(found.output, whole=bool(found.whole))
    return PruningLoss(
        images=found.images,
        held_out=held_out,
        sqnr_db=figures.sqnr_db,
        median_sqnr_db=figures.median_sqnr_db,
        lowest_sqnr_db=figures.lowest_sqnr_db,
        highest_sqnr_db=figures.highest_sqnr_db,
        cosine=figures.cosine,
        top1_agreement=found.agreement,
        constant=found.constant,
        synthetic=source.synthetic,
        note=f"{samples_text(found.images, source, held_out=held_out)}; torch, in float32",
    )


def _first(model: Checkpoint, batch: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    return {_OUTPUT: reference_outputs(model, batch)[0]}
