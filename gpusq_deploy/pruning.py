"""Prune where a build asks for it, and measure what that alone costs: the verification compares with what is left."""

from __future__ import annotations

from typing import NamedTuple

from gpusq_deploy.artifacts.receipt import PruningLoss
from gpusq_deploy.calibration.sources import Batches, DataSource
from gpusq_deploy.checkpoint.checkpoint import Checkpoint
from gpusq_deploy.compress.prune_checkpoint import Pruning, prune_checkpoint
from gpusq_deploy.doubts import pruning_doubts
from gpusq_deploy.export.onnx_export import reference_outputs
from gpusq_deploy.numerics.error import ErrorSums, Spread, error_sums, joined, spread_of, top1_agreement
from gpusq_deploy.recipe import Recipe
from gpusq_deploy.request import BuildRequest, Reporter
from gpusq_deploy.verify import bounded_db, samples_text, split_source
from gpusq_deploy.wording import counted

_BATCH = 4


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
    reporter.say(f"comparing with the dense model on {counted(len(apart), 'sample')}")
    loss = pruning_loss(checkpoint, pruned, apart, held_out=held_out, reporter=reporter)
    if loss is not None:
        reporter.say(f"pruned, SQNR {loss.sqnr_db:.1f} dB, cosine {loss.cosine:.5f} to the dense model: {loss.note}")
        for doubt in pruning_doubts(loss):
            reporter.say(f"warning: {doubt}")
    return Pruned(pruned, loss)


def pruning_loss(
    dense: Checkpoint, pruned: Checkpoint, source: DataSource, *, held_out: bool, reporter: Reporter
) -> PruningLoss | None:
    """Run both models on every sample, and compare their first outputs; two axes are taken for [N, classes].

    Args:
        dense: The model before pruning.
        pruned: The model after it.
        source: Samples to compare on.
        held_out: Whether pruning has not seen them.
        reporter: Hears how many of the samples are done.

    Returns:
        None where the first output is one number, not one of each sample: the verification refuses that by its name.

    Raises:
        GpusqError: No sample can be read, or an output isn't a tensor.
    """
    sums: list[ErrorSums] = []
    same: list[float] = []
    spread: Spread | None = None
    for batch in (batches := Batches(source=source, size=_BATCH)):
        one, other = (reference_outputs(each, batch)[0] for each in (dense, pruned))
        if one.ndim == 0:
            return None
        sums.append(error_sums(one, other))
        spread = spread_of(one, spread)
        if one.ndim == 2:
            same.append(top1_agreement(one, other) * len(one))
        reporter.progress("comparing with the dense model", batches.count, len(source))
    assert spread is not None, "a source without a readable sample is refused by its batches"
    whole = joined(sums)
    return PruningLoss(
        images=spread.samples,
        held_out=held_out,
        sqnr_db=bounded_db(whole.sqnr_db()),
        median_sqnr_db=bounded_db(whole.median_sqnr_db()),
        cosine=whole.cosine(),
        top1_agreement=sum(same) / spread.samples if same else None,
        constant=spread.constant,
        synthetic=source.synthetic,
        note=f"{samples_text(spread.samples, source, held_out=held_out)}; torch, in float32",
    )
