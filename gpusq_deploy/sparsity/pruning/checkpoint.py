"""Prune a loaded checkpoint to what a recipe expects, before it is compiled; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from gpusq_deploy.artifacts import LayerSparsity, PruneMethod, Recipe, SparsityRecord, SparsityReport
from gpusq_deploy.calibration import Batches, DataSource, spread_evenly
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import Checkpoint, QuantizerRecord, example_input, layer_weights
from gpusq_deploy.sparsity.check import sparsity_report
from gpusq_deploy.sparsity.permutation.arrange import arrange
from gpusq_deploy.sparsity.pruning.one_layer import OneshotOptions
from gpusq_deploy.sparsity.pruning.sites import site_of
from gpusq_deploy.sparsity.pruning.whole_model import OneshotReport, prune_oneshot
from gpusq_deploy.text import by_reason, counted, some

PRUNE_SAMPLES = 128
_BATCH = 8
_PROOF_BATCH = 2
# A pruner to 2:4 leaves half of a layer, and less where it met zeros; at this share of zeros, one of four is left.
_TRIVIAL_ZEROS = 0.75


class _Choice(NamedTuple):
    """Layers to prune, and layers that are 2:4 without having been pruned."""

    pruned: tuple[str, ...]
    trivial: tuple[LayerSparsity, ...]


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

    A dense checkpoint can hold layers that are 2:4 all the same: a value projection that begins as the identity
    (ConViT), a branch that begins with zeros. They are left as they are, and the record names them too.

    Args:
        checkpoint: Dense; its module isn't changed.
        recipe: Which layers are expected to be 2:4.
        how: The method, and whether channels are permuted first; see docs/pruning.md.
        source: Real samples, of which at most `PRUNE_SAMPLES`, evenly spread, are used; None for `magnitude`.
        say: Hears the remarks, and why each other layer stays dense.

    Raises:
        GpusqError: A layer has been pruned already, no layer can be pruned, or the samples can't be read.
    """
    report = sparsity_report(layer_weights(checkpoint.module), source=checkpoint.file, recipe=recipe, record=None)
    chosen, trivial = _layers(checkpoint, report)
    images = None if source is None else _images(source, say)
    samples = "" if images is None else f" on {counted(len(images), 'sample')}"
    say(f"pruning {counted(len(chosen), 'layer')} to 2:4 by {how.method}{samples}, without training")
    dense = checkpoint.module
    arranging: tuple[str, ...] = ()
    if how.permute:
        arranged = arrange(dense, chosen, images, example_input(checkpoint, _PROOF_BATCH))
        dense, arranging = arranged.module, arranged.lines()
    pruned = prune_oneshot(dense, chosen, images, OneshotOptions(method=how.method))
    kept = _still_valid(trivial, checkpoint, pruned.module, recipe)
    remarks = (*arranging, *_remarks(checkpoint, pruned.report), *map(_trivial_text, kept))
    for remark in remarks:
        say(remark)
    named = (*chosen, *(layer.layer for layer in kept))
    _say_dense([layer for layer in report.layers if layer.layer not in named], recipe, say)
    return replace(
        checkpoint,
        module=pruned.module,
        sparsity=SparsityRecord(method=f"gpusq-build --prune {how.method}", layers=named),
        ranges={},
        origins={},
        quantizers=QuantizerRecord(floats=checkpoint.quantizers.floats),
        remarks=(*checkpoint.remarks, _made_text(pruned.report), *remarks),
    )


def _layers(checkpoint: Checkpoint, report: SparsityReport) -> _Choice:
    """Which of the expected layers are pruned.

    A layer has been pruned where the checkpoint's record names it, or where it is 2:4 and less than three quarters of
    it are zero: more than one of four values is left on average. No dense layer of any size is 2:4 by chance, and a
    pruner leaves two of four; an identity leaves one of K, and zeros none. So those two sides of three quarters tell
    what was pruned from what is 2:4 by its making, whatever their number. One pruned layer is enough to refuse: it is
    the wrong file, or half of another command's work.

    Raises:
        GpusqError: A layer has been pruned already, or none is left to prune.
    """
    record = checkpoint.sparsity
    expected = [layer for layer in report.layers if layer.expected]
    trivial = tuple(layer for layer in expected if layer.valid and layer.zero_fraction >= _TRIVIAL_ZEROS)
    found = [layer.layer for layer in expected if layer.valid and layer not in trivial]
    _require_unpruned(found if record is None else record.layers, checkpoint)
    chosen = tuple(
        layer.layer for layer in expected if layer not in trivial and layer.k % 4 == 0 and _is_linear(checkpoint, layer)
    )
    if not chosen:
        raise _nothing_to_prune(trivial, checkpoint)
    return _Choice(chosen, trivial)


def _require_unpruned(already: Sequence[str], checkpoint: Checkpoint) -> None:
    if already:
        raise GpusqError(
            f"{counted(len(already), 'layer')} of the checkpoint pruned to 2:4 already: {some(already)}",
            place=checkpoint.file,
            hint="leave out --prune; or give the dense checkpoint that it was made from; or name such layers in a "
            "recipe rule with sparse = false",
        )


def _nothing_to_prune(trivial: Sequence[LayerSparsity], checkpoint: Checkpoint) -> GpusqError:
    if trivial:
        return GpusqError(
            f"--prune finds nothing to prune: 2:4 by its zeros already: {some([layer.layer for layer in trivial])}",
            place=checkpoint.file,
            hint="leave out --prune",
        )
    return GpusqError(
        "--prune finds nothing to prune: the recipe expects no Linear layer to be 2:4 whose K is a multiple of 4",
        place=checkpoint.file,
        hint="name the layers in a recipe, or leave out --prune and --sparse",
    )


def _still_valid(
    trivial: tuple[LayerSparsity, ...], checkpoint: Checkpoint, module: torch.nn.Module, recipe: Recipe
) -> tuple[LayerSparsity, ...]:
    """Those that are 2:4 in the result too: channels may have been permuted."""
    if not trivial:
        return ()
    report = sparsity_report(layer_weights(module), source=checkpoint.file, recipe=recipe, record=None)
    valid = {layer.layer for layer in report.layers if layer.valid}
    return tuple(layer for layer in trivial if layer.layer in valid)


def _trivial_text(layer: LayerSparsity) -> str:
    return f"{layer.layer} is left as it is: 2:4 already, for {layer.zero_fraction:.2%} of it is zero"


def _is_linear(checkpoint: Checkpoint, layer: LayerSparsity) -> bool:
    """Whether it is a Linear with a plain weight, or a projection that a nn.MultiheadAttention holds itself."""
    try:
        weight = site_of(checkpoint.module, layer.layer).weight(checkpoint.module)
    except (GpusqError, AttributeError):
        return False
    return weight.ndim == 2


def _images(source: DataSource, say: Callable[[str], None]) -> torch.Tensor:
    batches = Batches(source=spread_evenly(source, PRUNE_SAMPLES), size=_BATCH)
    images = torch.from_numpy(np.concatenate(list(batches)))
    for skipped in batches.skipped:
        say(f"skipped: {skipped}")
    return images


def _remarks(checkpoint: Checkpoint, report: OneshotReport) -> tuple[str, ...]:
    lines = [f"{layer.layer}: {layer.note}" for layer in report.layers if layer.note is not None]
    if checkpoint.ranges:
        lines.append(f"the {len(checkpoint.ranges)} activation ranges of the dense model no longer hold")
    return tuple(lines)


def _made_text(report: OneshotReport) -> str:
    how = f"on {counted(report.images, 'sample')}, " if report.images else ""
    return f"--prune: {counted(len(report.layers), 'layer')} made 2:4 by {report.options.method}, {how}without training"


def _say_dense(layers: Sequence[LayerSparsity], recipe: Recipe, say: Callable[[str], None]) -> None:
    """Which layers stay dense: those that the recipe leaves so, whose reasons gpusq-inspect gives, and the others."""
    left = [layer.layer for layer in layers if not layer.expected]
    if left:
        say(f"kept dense by recipe {recipe.name}: {some(left)}")
    for reason, names in by_reason((layer.layer, _why_dense(layer)) for layer in layers if layer.expected).items():
        say(f"{some(names)} {'stays' if len(names) == 1 else 'stay'} dense: {reason}")


def _why_dense(layer: LayerSparsity) -> str:
    if layer.k % 4:
        return f"K = {layer.k} is not a multiple of 4"
    if layer.valid:
        return "it was 2:4 by its zeros, until channels were permuted"
    return "--prune takes Linear layers only"
