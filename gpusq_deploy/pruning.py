"""Prune where a build asks for it, and measure what that alone costs: the verification compares with what is left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts.receipt import PruningLoss
from gpusq_deploy.calibration.sources import Batches, DataSource
from gpusq_deploy.checkpoint.checkpoint import Checkpoint
from gpusq_deploy.compress.prune_checkpoint import Pruning, prune_checkpoint
from gpusq_deploy.doubts import compared_text, pruning_doubts
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.export.onnx_export import reference_outputs
from gpusq_deploy.numerics.error import (
    ErrorSums,
    Spread,
    equal_share,
    error_sums,
    is_floating,
    joined,
    spread_of,
    top1_agreement,
)
from gpusq_deploy.numerics.samples import SampleAxis, by_sample, find_sample_axis
from gpusq_deploy.recipe import Recipe
from gpusq_deploy.request import BuildRequest, Reporter
from gpusq_deploy.verify import figures_of, samples_text, split_source

_BATCH = 4

Array = npt.NDArray[Any]


class Pruned(NamedTuple):
    """The checkpoint that the build goes on with, and what pruning cost; None where nothing was pruned."""

    checkpoint: Checkpoint
    loss: PruningLoss | None


def prune_as_asked(
    checkpoint: Checkpoint, request: BuildRequest, recipe: Recipe, samples: DataSource, reporter: Reporter
) -> Pruned:
    """Prune to what the recipe expects, where that was asked, on those of the samples that verification won't use.

    Raises:
        GpusqError: Nothing to prune, layers that are 2:4 already, or data that can't be read.
    """
    if request.prune is None:
        return Pruned(checkpoint, None)
    rest, apart, held_out = split_source(samples)
    how = Pruning(method=request.prune, permute=request.permute)
    source = None if request.prune == "magnitude" else rest
    pruned = prune_checkpoint(checkpoint, recipe, how, source, reporter.say)
    loss = pruning_loss(checkpoint, pruned, apart, held_out=held_out, reporter=reporter)
    reporter.say(f"pruned: {compared_text(loss)}")
    for doubt in pruning_doubts(loss):
        reporter.say(f"warning: {doubt}")
    return Pruned(pruned, loss)


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
    seen = _Seen()
    for batch in (batches := Batches(source=source, size=_BATCH)):
        one, other = (reference_outputs(each, batch)[0] for each in (dense, pruned))
        if not all(np.isfinite(answer).all() for answer in (one, other)):
            raise GpusqError(
                "the dense or the pruned model answers with NaN or infinity: what pruning costs can't be measured",
                place=str(dense.arch),
                hint="check the checkpoint's weights, and that the samples are normalised as the model expects",
            )
        if not seen.images:
            rolled = reference_outputs(dense, np.roll(batch, -1, axis=0))[0]
            seen.where = find_sample_axis(one, rolled, len(batch))
        seen.add(one, other, len(batch))
        reporter.progress("comparing with the dense model", batches.count, len(source))
    figures = figures_of(joined(seen.sums) if seen.sums else None, whole=seen.where is None)
    return PruningLoss(
        images=seen.images,
        held_out=held_out,
        sqnr_db=figures.sqnr_db,
        median_sqnr_db=figures.median_sqnr_db,
        lowest_sqnr_db=figures.lowest_sqnr_db,
        highest_sqnr_db=figures.highest_sqnr_db,
        cosine=figures.cosine,
        top1_agreement=sum(seen.same) / seen.images if seen.same else None,
        constant=seen.spread is not None and seen.spread.constant,
        synthetic=source.synthetic,
        note=f"{samples_text(seen.images, source, held_out=held_out)}; torch, in float32",
    )


@dataclass(kw_only=True, slots=True)
class _Seen:
    """What is kept of each batch; `same` are agreements, each times its samples."""

    where: SampleAxis | None = None
    sums: list[ErrorSums] = field(default_factory=list[ErrorSums])
    same: list[float] = field(default_factory=list[float])
    spread: Spread | None = None
    images: int = 0

    def add(self, dense: Array, pruned: Array, count: int) -> None:
        one, other = (by_sample(answer, self.where) for answer in (dense, pruned))
        self.images += count
        if self.where is not None:
            self.spread = spread_of(one, self.spread)
        if not is_floating(one):
            self.same.append(equal_share(one, other) * count)
            return
        self.sums.append(error_sums(one, other))
        if dense.ndim == one.ndim == 2:
            self.same.append(top1_agreement(one, other) * count)
