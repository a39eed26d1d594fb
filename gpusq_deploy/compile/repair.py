"""Mend a checkpoint's 2:4: channels into an order in which it holds, and values to zero that were meant to be.

1. Permute, where asked: for every set of channels whose order is free (sparsity/permutation/free_channels.py) and whose
   readers should be 2:4 and aren't, look for an order in which they are; where there is none, for the order in which
   2:4 keeps most of their magnitude, if it breaks no more groups than before.
2. Run both models. A permutation after which an output differs is taken back: a rule misread the module.
3. Set near misses to zero.

The old file is read and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gpusq_deploy.artifacts import (
    ArchSpec,
    Channels,
    Declined,
    HowFound,
    LayerSparsity,
    Permuted,
    Proof,
    Repair,
    digest_of_file,
    require_folder,
)
from gpusq_deploy.bundle import validate
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import (
    SELF_DESCRIBING,
    Checkpoint,
    example_input,
    kind_of,
    load_checkpoint,
    read_checkpoint_file,
    require_another_file,
    rewrite_checkpoint,
    rows_of,
    tensors_in_file,
    weights_file,
)
from gpusq_deploy.numerics import GROUP
from gpusq_deploy.sparsity import (
    Permutation,
    Reorder,
    TensorRunner,
    Tensors,
    broken_groups,
    find_channels,
    find_valid_order,
    keep_proven,
    kept_by_24,
    left_alone,
    mend_near_misses,
    permuted_from,
    places_of,
    reordered,
    search_permutation,
)
from gpusq_deploy.text import some

_BATCH = 2


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


class _Reordered(NamedTuple):
    """Orders that are proven, the tensors in them, and what was left alone; `runner` is None without a module."""

    runner: TensorRunner | None
    kept: tuple[Reorder, ...]
    tensors: dict[str, torch.Tensor]
    declined: tuple[Declined, ...]


def repair_checkpoint(request: RepairRequest, say: Callable[[str], None]) -> Repair:
    """Mend what can be mended and write it to another file; no file where nothing was.

    Raises:
        GpusqError: The output exists or is the model itself, a bad checkpoint, or `permute` without an architecture.
    """
    _require_place(request)
    result = validate(request.model, arch=request.arch, recipe=request.recipe)
    expected = {layer.layer: layer for layer in result.sparsity.layers if layer.expected and layer.k % GROUP == 0}
    old = tensors_in_file(request.model)
    strangers = [layer.tensor for layer in expected.values() if layer.tensor not in old]
    if strangers:
        raise GpusqError(
            f"the file stores weights under other names than the module: {some(strangers)}",
            place=str(request.model),
            hint="save the module's own: torch.save(model.state_dict(), 'weights.pt')",
        )
    checkpoint = _loaded(request)
    permuted = _permuted(checkpoint, old, expected, request)
    for item in permuted.kept:
        say(_permuted_line(item.permuted))
    tensors, mended, left = mend_near_misses(permuted.tensors, expected.values(), request.near_miss)
    changed = {name: tensor for name, tensor in tensors.items() if tensor is not old[name]}
    if changed:
        rewrite_checkpoint(request.model, request.out, changed)
    return Repair(
        source=str(request.model),
        source_digest=digest_of_file(request.model),
        file=str(request.out) if changed else None,
        near_miss=request.near_miss,
        near_misses=mended,
        permuted=tuple(item.permuted for item in permuted.kept),
        declined=(*permuted.declined, *left),
        proof=_proof(permuted, tensors) if changed else None,
        notes=_notes(checkpoint),
    )


def _permuted(
    checkpoint: Checkpoint | None, old: Tensors, expected: Mapping[str, LayerSparsity], request: RepairRequest
) -> _Reordered:
    if checkpoint is None:
        return _Reordered(None, (), dict(old), ())
    feed = example_input(checkpoint, _BATCH)
    if not request.permute:
        return _Reordered(TensorRunner(checkpoint.module, old, feed), (), dict(old), ())
    channels, declined = find_channels(checkpoint.module)
    found, refused = _orders(channels, expected, old, request.near_miss)
    runner = TensorRunner(checkpoint.module, old, feed, places_of(found))
    kept, strangers = keep_proven(runner, old, found)
    return _Reordered(runner, tuple(kept), reordered(old, kept), (*declined, *refused, *strangers))


def _proof(permuted: _Reordered, tensors: Tensors) -> Proof | None:
    if permuted.runner is None:
        return None
    permutation = permuted.runner.difference(permuted.tensors) if permuted.kept else None
    return Proof(permutation=permutation, whole=permuted.runner.difference(tensors), batch=_BATCH)


def _require_place(request: RepairRequest) -> None:
    out, model = request.out, request.model
    kind = kind_of(model)
    if kind == "checkpoint" and model.is_dir():
        raise GpusqError("a file is repaired, not a folder", place=str(model), hint=f"give {weights_file(model)}")
    if kind != "checkpoint":
        raise GpusqError(
            "only checkpoints are repaired", place=str(model), hint="repair the checkpoint, then run gpusq-build again"
        )
    if out.is_dir():
        raise GpusqError("the output is a folder", place=str(out), hint="give --repair a file name")
    require_another_file(out, model)
    if (out.suffix == ".safetensors") != (model.suffix == ".safetensors"):
        raise GpusqError("a repair keeps the file's format", place=str(out), hint=f"name it *{model.suffix}")
    if out.exists() and not request.force:
        raise GpusqError("the output exists", place=str(out), hint="name another file, or replace it with --force")
    require_folder(out)


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
) -> tuple[list[Reorder], list[Declined]]:
    """Look for an order of every set of channels that a broken layer reads."""
    found: list[Reorder] = []
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


def _order(channels: Channels, readers: Sequence[LayerSparsity], old: Tensors, near_miss: float) -> Reorder | Declined:
    weights = [torch.from_numpy(np.abs(rows_of(old[layer.tensor]).astype(np.float32))) for layer in readers]
    masks = [weight > near_miss * weight.amax(dim=1, keepdim=True) for weight in weights]
    filled = torch.cat(masks).T.contiguous()
    before = broken_groups(filled)
    if not before:
        return _declined(channels, "every group holds once near misses are zero")
    result, found = _searched(torch.cat(weights).T.contiguous(), filled, channels.segment)
    if not result.changed:
        return _declined(channels, "no other order was found in which 2:4 keeps more")
    after = broken_groups(filled[result.order])
    spoilt = _spoilt(readers, masks, result.order)
    # A layer of which most groups are broken has no pattern that could be lost.
    if spoilt or (after > before and before < filled.numel() / GROUP / 2):
        why = f"would break {', '.join(spoilt)}" if spoilt else f"breaks {after} groups, now {before} are broken"
        return _declined(channels, f"the order in which 2:4 keeps most {why}")
    return Reorder(permuted_from(channels, result, found=found, violations=(before, after)), result.order)


def _spoilt(readers: Sequence[LayerSparsity], masks: Sequence[torch.Tensor], order: torch.Tensor) -> list[str]:
    """Valid layers that the order would break."""
    return [
        layer.layer for layer, mask in zip(readers, masks, strict=True) if layer.valid and broken_groups(mask.T[order])
    ]


def _searched(scores: torch.Tensor, filled: torch.Tensor, segment: int) -> tuple[Permutation, HowFound]:
    # A mask shows most clearly in what is exactly zero; only then may near misses count as zero too.
    valid = find_valid_order(scores > 0, segment=segment)
    if valid is None:
        valid = find_valid_order(filled, segment=segment)
    if valid is None:
        return search_permutation(scores, segment=segment), "most magnitude"
    total, before, after = float(scores.double().sum()), kept_by_24(scores), kept_by_24(scores[valid])
    return Permutation(order=valid, total=total, before=before, after=after, settled=True), "valid pattern"


def _declined(channels: Channels, reason: str) -> Declined:
    return left_alone(channels.kind, channels.place, reason)


def _permuted_line(permuted: Permuted) -> str:
    channels, (before, after), kept = permuted.channels, permuted.violations, permuted.kept
    return (
        f"{channels.kind} of {channels.place or 'the model'}: {permuted.found}, broken groups {before} to {after}, "
        f"2:4 keeps {kept[0]:.2%} to {kept[1]:.2%} of the magnitude"
    )
