"""Masks of pruned weights, whoever made them.

1. A mask of zeros and ones, of its weight's shape and any type, is applied: weight x mask is what the model computes
   with.
2. A mask that is 2:4 along the input channels of a layer's weight is recorded; any other is applied and told.
3. A mask of ones alone prunes nothing, and the layer counts as dense.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from gpusq_deploy.artifacts import SparsityRecord
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.layer_names import is_layer_weight, layer_of
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.numerics import GROUP, census, rows_from_conv
from gpusq_deploy.text import some


@dataclass(frozen=True, kw_only=True, slots=True)
class Mask:
    """One mask of a file.

    Attributes:
        key: Its name, for errors.
        values: Zeros and ones.
        parameter: The tensor that the model computes with.
        source: The file's name of the tensor that the mask belongs to, which `parameter` is made from.
    """

    key: str
    values: torch.Tensor
    parameter: str
    source: str


@dataclass(kw_only=True, slots=True)
class _Outcome:
    pruned: list[str] = field(default_factory=list[str])
    dense: list[str] = field(default_factory=list[str])
    late: list[str] = field(default_factory=list[str])
    other: list[str] = field(default_factory=list[str])


def apply_masks(
    reading: Reading, masks: Iterable[Mask], *, producer: str, place: str, gone: Iterable[str] = (), tied: bool = False
) -> Reading:
    """Apply masks, record those that are 2:4, and tell the rest; see the module's rules.

    Args:
        reading: What was read so far.
        masks: The masks.
        producer: Who made them.
        place: The file.
        gone: Names to take out of the state dict beside those of `masks`.
        tied: The producer multiplies the stored tensor itself, so that all names of one tensor see it.

    Raises:
        GpusqError: A mask fits no weight, or holds anything but 0 and 1.
    """
    found = list(masks)
    outcome = _Outcome()
    values = {mask.source: _masked(reading.state, mask, outcome, place=f"{place}, {mask.key}") for mask in found}
    if tied:
        values |= dict(_ties(reading.state, values))
    names = {mask.source: mask.parameter for mask in found}
    left = {mask.key for mask in found} | set(gone)
    state = {
        names.get(name, name): values.get(name, tensor) for name, tensor in reading.state.items() if name not in left
    }
    return replace(
        reading,
        state=state,
        sparsity=_recorded(reading.sparsity, producer, outcome.pruned),
        remarks=(*reading.remarks, *_remarks(producer, outcome)),
        producers=(*reading.producers, producer),
    )


def _recorded(record: SparsityRecord | None, producer: str, layers: list[str]) -> SparsityRecord | None:
    """The record with more layers."""
    if not layers or record is None:
        return SparsityRecord(method=producer, layers=tuple(layers)) if layers else record
    return SparsityRecord(method=f"{record.method}, {producer}", layers=tuple(dict.fromkeys([*record.layers, *layers])))


def is_mask_of(mask: torch.Tensor | None, weight: torch.Tensor | None) -> bool:
    """Whether a tensor can be a weight's mask: of its shape, and zeros and ones."""
    if mask is None or weight is None or mask.shape != weight.shape:
        return False
    return mask.dtype == torch.bool or bool((mask.bool().to(mask.dtype) == mask).all())


def is_24(mask: torch.Tensor) -> bool:
    """Whether zeros are where 2:4 along the input channels of a weight [N, K] or [N, C, kernel] asks for them."""
    array = array_from_tensor(mask.bool().to(torch.uint8))
    rows = rows_from_conv(array) if array.ndim == 4 else array
    return rows.shape[1] % GROUP == 0 and not census(rows.astype(np.float32)).violations


def _masked(state: Mapping[str, torch.Tensor], mask: Mask, outcome: _Outcome, *, place: str) -> torch.Tensor:
    kept, weight = _checked(mask, state.get(mask.source), place=place)
    if weight.is_floating_point() and weight.element_size() == 1:  # nothing can be computed with FP8
        weight = weight.float()
    layer = layer_of(mask.parameter)
    if bool(kept.all()):
        outcome.dense.append(layer)
        return weight
    by_layer = is_layer_weight(mask.parameter, weight.shape) and is_24(kept)
    (outcome.pruned if by_layer else outcome.other).append(layer)
    if bool((weight[~kept] != 0).any()):
        outcome.late.append(layer)
    return weight * kept.to(weight.dtype)


def _checked(mask: Mask, weight: torch.Tensor | None, *, place: str) -> tuple[torch.Tensor, torch.Tensor]:
    if weight is None or weight.shape != mask.values.shape:
        shape = "no weight" if weight is None else f"a weight of {list(weight.shape)}"
        raise GpusqError(
            f"a mask of {list(mask.values.shape)} belongs to {shape}",
            place=place,
            hint="save the whole state dict again",
        )
    if not is_mask_of(mask.values, weight):
        raise GpusqError("the mask holds other values than 0 and 1", place=place, hint="save the checkpoint again")
    return mask.values.bool(), weight


def _ties(state: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> Iterable[tuple[str, torch.Tensor]]:
    """Other names of the tensors that were masked."""
    places = {_place(state[name]): value for name, value in values.items() if state[name].numel()}
    for name, tensor in state.items():
        if name not in values and _place(tensor) in places:
            yield name, places[_place(tensor)]


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _remarks(producer: str, outcome: _Outcome) -> list[str]:
    said = (
        (outcome.late, "had yet to be applied, and are now"),
        (outcome.other, "aren't 2:4 along the input channels of a layer, so they are applied and not recorded"),
        (outcome.dense, "prune nothing, and the layers count as dense"),
    )
    return [f"{producer}'s masks {what}: {some(layers)}" for layers, what in said if layers]
