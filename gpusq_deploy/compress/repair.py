"""Mend a checkpoint's 2:4: channels into an order in which it holds, and values to zero that were meant to be.

1. Permute, where asked: for every set of channels whose order is free (gpusq_deploy.compress.channels) and whose
   readers should be 2:4 and aren't, look for an order in which they are; where there is none, for the order in which
   2:4 keeps most of their magnitude, if it breaks no more groups than before.
2. Run both models. A permutation after which an output differs is taken back: a rule misread the module.
3. Set near misses to zero.

The old file is read and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.artifacts.base import digest_of_file
from gpusq_deploy.artifacts.repair import Channels, Declined, HowFound, NearMisses, Permuted, Proof, Repair
from gpusq_deploy.artifacts.sparsity import LayerSparsity
from gpusq_deploy.checkpoint.checkpoint import Checkpoint, load_checkpoint
from gpusq_deploy.checkpoint.files import SELF_DESCRIBING, read_checkpoint_file
from gpusq_deploy.checkpoint.rewrite import rewrite_checkpoint, tensors_in_file
from gpusq_deploy.checkpoint.weights import rows_of
from gpusq_deploy.compress.channels import find_channels, permute_channels
from gpusq_deploy.compress.permute import (
    Permutation,
    find_valid_order,
    integers_from_tensor,
    kept_by_24,
    search_permutation,
)
from gpusq_deploy.compress.proof import Runner
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.export.onnx_export import example_input
from gpusq_deploy.numerics.near_miss import near_miss_mask
from gpusq_deploy.numerics.sparsity import GROUP, KEPT, Mask, Matrix
from gpusq_deploy.validate import validate

# Float64 and another order of summation: what is larger is another function.
_SAME = 1e-9
_BATCH = 2
_PLACES = 8

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairRequest:
    """What is to be mended.

    Attributes:
        model: The checkpoint.
        arch: Its architecture, where it doesn't describe itself and channels are to be permuted.
        recipe: Which layers should be 2:4, where it doesn't say; None is the default recipe.
        near_miss: Values up to this share of their row's largest may be set to zero; 0 sets none.
        permute: Permute channels too.
        out: The file to write.
        force: Replace a file that is there.
    """

    model: Path
    arch: ArchSpec | None
    recipe: Path | None
    near_miss: float
    permute: bool
    out: Path
    force: bool


class _Found(NamedTuple):
    permuted: Permuted
    order: torch.Tensor


def repair_checkpoint(request: RepairRequest, say: Callable[[str], None]) -> Repair:
    """Mend what can be mended and write it to another file; no file where nothing was.

    Raises:
        GpusqError: The output exists or is the model itself, a bad checkpoint, or `permute` without an architecture.
    """
    _require_place(request)
    result = validate(request.model, arch=request.arch, recipe=request.recipe)
    expected = {layer.layer: layer for layer in result.sparsity.layers if layer.expected and layer.k % GROUP == 0}
    old = tensors_in_file(request.model)
    checkpoint = _loaded(request)
    runner: Runner | None = None
    if request.permute and checkpoint is not None:
        channels, declined = find_channels(checkpoint.module)
        found, refused = _orders(channels, expected, old, request.near_miss)
        runner = Runner(checkpoint.module, old, example_input(checkpoint, _BATCH), _places(found))
        kept, strangers = _proven(runner, old, found)
        for item in kept:
            say(_permuted_line(item.permuted))
        declined = (*declined, *refused, *strangers)
    else:
        runner = None if checkpoint is None else Runner(checkpoint.module, old, example_input(checkpoint, _BATCH))
        kept, declined = [], ()
    permuted = _applied(old, kept)
    tensors, mended, left = _mend(permuted, expected, request.near_miss)
    changed = {name: tensor for name, tensor in tensors.items() if tensor is not old[name]}
    if changed:
        rewrite_checkpoint(request.model, request.out, changed)
    return Repair(
        source=str(request.model),
        source_digest=digest_of_file(request.model),
        file=str(request.out) if changed else None,
        near_miss=request.near_miss,
        near_misses=mended,
        permuted=tuple(item.permuted for item in kept),
        declined=(*declined, *left),
        proof=_proof(runner, permuted if kept else None, tensors) if runner is not None and changed else None,
        notes=_notes(checkpoint),
    )


def _proof(runner: Runner, permuted: Tensors | None, tensors: Tensors) -> Proof:
    permutation = None if permuted is None else runner.difference(permuted)
    return Proof(permutation=permutation, whole=runner.difference(tensors), batch=_BATCH)


def _require_place(request: RepairRequest) -> None:
    out, model = request.out, request.model
    if model.is_dir() or model.suffix == ".onnx":
        raise GpusqError(
            "only checkpoints are repaired", place=str(model), hint="repair the checkpoint, then run gpusq-build again"
        )
    if out.is_dir():
        raise GpusqError("the output is a folder", place=str(out), hint="give --repair a file name")
    if out.exists() and model.exists() and out.samefile(model):
        raise GpusqError("the old file is kept: it can't be the output", place=str(out), hint="name another file")
    if (out.suffix == ".safetensors") != (model.suffix == ".safetensors"):
        raise GpusqError("a repair keeps the file's format", place=str(out), hint=f"name it *{model.suffix}")
    if out.exists() and not request.force:
        raise GpusqError("the output exists", place=str(out), hint="name another file, or replace it with --force")
    parent = out.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise GpusqError("the output can't be written there", place=str(parent), hint="name another file")


def _loaded(request: RepairRequest) -> Checkpoint | None:
    describes_itself = read_checkpoint_file(request.model).get("format") == SELF_DESCRIBING
    if request.arch is not None or describes_itself:
        return load_checkpoint(request.model, arch=request.arch)
    if request.permute:
        raise GpusqError(
            "permuting channels needs the architecture: who reads what a layer writes?",
            place=str(request.model),
            hint="add --arch, such as --arch timm:vit_small_patch16_224",
        )
    return None


def _notes(checkpoint: Checkpoint | None) -> tuple[str, ...]:
    if checkpoint is None:
        return ("the architecture isn't known: the models before and after were not run",)
    if checkpoint.ranges:
        return (f"its {len(checkpoint.ranges)} recorded ranges are kept: they were measured before the repair",)
    return ()


def _orders(
    channels: Sequence[Channels], expected: Mapping[str, LayerSparsity], old: Tensors, near_miss: float
) -> tuple[list[_Found], list[Declined]]:
    """Look for an order of every set of channels that a broken layer reads."""
    found: list[_Found] = []
    refused: list[Declined] = []
    for item in channels:
        readers = [expected[layer] for layer in item.readers if layer in expected]
        answer = _order(item, readers, old, near_miss) if any(not layer.valid for layer in readers) else None
        if isinstance(answer, Declined):
            refused.append(answer)
        elif answer is not None:
            found.append(answer)
    known = {layer for item in channels for layer in item.readers}
    refused += [
        Declined(kind="layer", place=name, reason="no rule knows an order of its input channels that is free")
        for name, layer in expected.items()
        if not layer.valid and name not in known
    ]
    return found, refused


def _order(channels: Channels, readers: Sequence[LayerSparsity], old: Tensors, near_miss: float) -> _Found | Declined:
    weights = [torch.from_numpy(np.abs(rows_of(old[layer.tensor]).astype(np.float32))) for layer in readers]
    masks = [weight > near_miss * weight.amax(dim=1, keepdim=True) for weight in weights]
    filled = torch.cat(masks).T.contiguous()
    before = _broken_groups(filled)
    if not before:
        return _declined(channels, "every group holds once near misses are zero")
    result, found = _searched(torch.cat(weights).T.contiguous(), filled, channels.segment)
    if not result.changed:
        return _declined(channels, "no other order was found in which 2:4 keeps more")
    after = _broken_groups(filled[result.order])
    spoilt = [
        layer.layer
        for layer, mask in zip(readers, masks, strict=True)
        if layer.valid and _broken_groups(mask.T[result.order])
    ]
    # A layer of which most groups are broken has no pattern that could be lost.
    if spoilt or (after > before and before < filled.numel() / GROUP / 2):
        why = f"would break {', '.join(spoilt)}" if spoilt else f"breaks {after} groups, now {before} are broken"
        return _declined(channels, f"the order in which 2:4 keeps most {why}")
    permuted = Permuted(
        channels=channels,
        found=found,
        order=tuple(integers_from_tensor(result.order)),
        violations=(before, after),
        kept=(result.before / result.total, result.after / result.total),
        settled=result.settled,
    )
    return _Found(permuted, result.order)


def _searched(scores: torch.Tensor, filled: torch.Tensor, segment: int) -> tuple[Permutation, HowFound]:
    # A mask shows most clearly in what is exactly zero; only then may near misses count as zero too.
    valid = find_valid_order(scores > 0, segment=segment)
    if valid is None:
        valid = find_valid_order(filled, segment=segment)
    if valid is None:
        return search_permutation(scores, segment=segment), "most magnitude"
    total, before, after = float(scores.double().sum()), kept_by_24(scores), kept_by_24(scores[valid])
    return Permutation(order=valid, total=total, before=before, after=after, settled=True), "valid pattern"


def _broken_groups(filled: torch.Tensor) -> int:
    """Groups along the first axis of [K, rows] with more than two that are True."""
    return int((filled.reshape(-1, GROUP, filled.shape[1]).sum(dim=1) > KEPT).sum())


def _declined(channels: Channels, reason: str) -> Declined:
    return Declined(kind=channels.kind, place=channels.place or "the model", reason=reason)


def _permuted_line(permuted: Permuted) -> str:
    channels, (before, after), kept = permuted.channels, permuted.violations, permuted.kept
    return (
        f"{channels.kind} of {channels.place or 'the model'}: {permuted.found}, broken groups {before} to {after}, "
        f"2:4 keeps {kept[0]:.2%} to {kept[1]:.2%} of the magnitude"
    )


def _places(found: Sequence[_Found]) -> tuple[str, ...]:
    return ("", *(item.permuted.channels.place for item in found if item.permuted.channels.place))


def _proven(runner: Runner, old: Tensors, found: Sequence[_Found]) -> tuple[list[_Found], list[Declined]]:
    """Keep the permutations after which the model is the same function; the others with the difference they made.

    Those within a module are judged at its own output, where no later scale can hide them. The stream's permutes
    these outputs, so it is judged alone, at the model's.
    """
    kept: list[_Found] = []
    refused: list[Declined] = []
    inner = [item for item in found if item.permuted.channels.place]
    if inner and runner.difference(_applied(old, inner), _places(inner)) <= _SAME:
        kept, inner = inner, []
    for item in (*inner, *(item for item in found if not item.permuted.channels.place)):
        difference = runner.difference(_applied(old, [item]), _places([item]))
        if difference <= _SAME:
            kept.append(item)
        else:
            why = f"taken back: run before and after, the outputs differ by {difference:.2g} of the largest"
            refused.append(_declined(item.permuted.channels, why))
    return kept, refused


def _applied(old: Tensors, found: Iterable[_Found]) -> dict[str, torch.Tensor]:
    tensors = dict(old)
    for item in found:
        tensors = permute_channels(tensors, item.permuted.channels, item.order)
    return tensors


def _mend(
    tensors: Tensors, expected: Mapping[str, LayerSparsity], fraction: float
) -> tuple[dict[str, torch.Tensor], tuple[NearMisses, ...], tuple[Declined, ...]]:
    """Set near misses to zero in every layer that should be 2:4."""
    result = dict(tensors)
    mended: list[NearMisses] = []
    declined: list[Declined] = []
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors.values()]
    for layer in expected.values():
        tensor = tensors[layer.tensor]
        rows = rows_of(tensor)
        found = near_miss_mask(rows, fraction)
        if not found.groups and not found.left:
            continue
        shared = storages.count(tensor.untyped_storage().data_ptr()) > 1
        # Where most broken groups would stay so, the layer was never 2:4: zeroing here and there wouldn't mend it.
        if found.groups > found.left and not shared:
            result[layer.tensor] = tensor.masked_fill(_stored_mask(found.mask, tensor), 0)
            mended.append(_near_misses(layer, rows.astype(np.float64), found.mask, (found.groups, found.left)))
        if shared or found.left:
            why = "its weight is shared" if shared else f"{found.left} groups hold three larger values"
            declined.append(Declined(kind="near misses", place=layer.layer, reason=why))
    return result, tuple(mended), tuple(declined)


def _stored_mask(mask: Mask, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim == 2:
        return torch.from_numpy(mask)
    count, channels, *kernel = tensor.shape
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(mask.reshape(count, *kernel, channels), -1, 1)))


def _near_misses(layer: LayerSparsity, rows: Matrix, mask: Mask, groups: tuple[int, int]) -> NearMisses:
    values = np.abs(rows[mask])
    largest = np.abs(rows).max(axis=1)
    norm = float(np.linalg.norm(values))
    return NearMisses(
        layer=layer.layer,
        tensor=layer.tensor,
        groups=groups[0],
        left=groups[1],
        zeroed=len(values),
        largest=float(values.max()),
        largest_ratio=float((values / largest[np.nonzero(mask)[0]]).max()),
        total=float(values.sum()),
        norm=norm,
        relative_norm=norm / float(np.linalg.norm(rows)),
        places=tuple((int(row), int(column)) for row, column in np.argwhere(mask)[:_PLACES]),
    )
