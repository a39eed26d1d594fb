"""Prune a loaded checkpoint to what a recipe expects, before it is compiled; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from gpusq_deploy.artifacts.sparsity import LayerSparsity, PruneMethod, SparsityRecord, SparsityReport
from gpusq_deploy.calibration.sources import Batches, DataSource, Selection
from gpusq_deploy.checkpoint.checkpoint import Checkpoint
from gpusq_deploy.checkpoint.weights import layer_weights
from gpusq_deploy.compress.arrange import arrange
from gpusq_deploy.compress.oneshot import OneshotOptions
from gpusq_deploy.compress.parts import Parts
from gpusq_deploy.compress.prune import FUSED
from gpusq_deploy.compress.sequential import OneshotReport, prune_oneshot
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.export.onnx_export import example_input
from gpusq_deploy.recipe import Recipe
from gpusq_deploy.sparsity import sparsity_report

PRUNE_SAMPLES = 128
_BATCH = 8
_PROOF_BATCH = 2


class Pruning(NamedTuple):
    """How weights are chosen, and whether channels are put into the order in which 2:4 keeps most first."""

    method: PruneMethod
    permute: bool = False


def prune_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    how: Pruning,
    source: DataSource | None,
    say: Callable[[str], None],
) -> Checkpoint:
    """Prune the Linear layers that the recipe expects to be 2:4, whose K is a multiple of 4.

    The result's record names them, and its remarks say what was done. Recorded ranges are those of the dense model and
    are left out.

    Args:
        checkpoint: Dense; its module isn't changed.
        recipe: Which layers are expected to be 2:4.
        how: The method, and whether channels are permuted first; see docs/pruning.md.
        source: Real samples, of which at most `PRUNE_SAMPLES`, evenly spread, are used; None for `magnitude`.
        say: Hears the remarks, and why each other layer stays dense.

    Raises:
        GpusqError: A layer is 2:4 already, no layer can be pruned, or the samples can't be read.
    """
    report = sparsity_report(layer_weights(checkpoint.module), source=checkpoint.file, recipe=recipe, record=None)
    chosen = _layers(checkpoint, report)
    images = None if source is None else _images(source, say)
    samples = "" if images is None else f" on {len(images)} samples"
    say(f"pruning {len(chosen)} layers to 2:4 by {how.method}{samples}")
    dense = checkpoint.module
    arranging: tuple[str, ...] = ()
    if how.permute:
        arranged = arrange(dense, chosen, images, example_input(checkpoint, _PROOF_BATCH))
        dense, arranging = arranged.module, arranged.lines()
    pruned = prune_oneshot(dense, chosen, images, OneshotOptions(method=how.method))
    remarks = (*arranging, *_remarks(checkpoint, pruned.report))
    for remark in remarks:
        say(remark)
    for layer in report.layers:
        if layer.layer not in chosen:
            say(f"{layer.layer} stays dense: {_why_dense(layer)}")
    return replace(
        checkpoint,
        module=pruned.module,
        sparsity=SparsityRecord(method=f"gpusq-build --prune {how.method}", layers=chosen),
        ranges={},
        origins={},
        remarks=(*checkpoint.remarks, *remarks),
    )


def _layers(checkpoint: Checkpoint, report: SparsityReport) -> tuple[str, ...]:
    record = checkpoint.sparsity
    expected = [layer for layer in report.layers if layer.expected]
    already = [layer.layer for layer in expected if layer.valid] if record is None else list(record.layers)
    if already:
        raise GpusqError(
            f"{len(already)} layers of the checkpoint are 2:4 already: {', '.join(already[:3])}",
            place=checkpoint.file,
            hint="leave out --prune, or give the dense checkpoint that it was made from",
        )
    chosen = tuple(layer.layer for layer in expected if layer.k % 4 == 0 and _is_linear(checkpoint, layer))
    if not chosen:
        raise GpusqError(
            "--prune finds nothing to prune: the recipe expects no Linear layer to be 2:4 whose K is a multiple of 4",
            place=checkpoint.file,
            hint="name the layers in a recipe, or leave out --prune and --sparse",
        )
    return chosen


def _is_linear(checkpoint: Checkpoint, layer: LayerSparsity) -> bool:
    # The input projection of a nn.MultiheadAttention is a parameter of it, and no module.
    return Parts(checkpoint.module).linear("", layer.layer) is not None


def _images(source: DataSource, say: Callable[[str], None]) -> torch.Tensor:
    count = min(len(source), PRUNE_SAMPLES)
    spread = Selection(source=source, indices=[index * len(source) // count for index in range(count)])
    batches = Batches(source=spread, size=_BATCH)
    images = torch.from_numpy(np.concatenate(list(batches)))
    for skipped in batches.skipped:
        say(f"skipped: {skipped}")
    return images


def _remarks(checkpoint: Checkpoint, report: OneshotReport) -> tuple[str, ...]:
    how = f"on {report.images} samples, " if report.images else ""
    lines = [f"--prune: {len(report.layers)} layers made 2:4 by {report.options.method}, {how}without training"]
    lines += [f"{layer.layer}: {layer.note}" for layer in report.layers if layer.note is not None]
    if checkpoint.ranges:
        lines.append(f"the {len(checkpoint.ranges)} activation ranges of the dense model don't hold any more")
    return tuple(lines)


def _why_dense(layer: LayerSparsity) -> str:
    if not layer.expected:
        return layer.reason
    if layer.k % 4:
        return f"K = {layer.k} is not a multiple of 4"
    return "--prune takes Linear layers only" if layer.tensor == f"{layer.layer}.weight" else FUSED
