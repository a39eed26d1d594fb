"""Set values to zero that were meant to be zero, in groups of four that would otherwise not be 2:4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch

from gpusq_deploy.artifacts import Declined, LayerSparsity, NearMisses
from gpusq_deploy.frontend import rows_of
from gpusq_deploy.numerics import Mask, Matrix, near_miss_mask
from gpusq_deploy.sparsity.permutation.reorder import Tensors

_PLACES = 8


def mend_near_misses(
    tensors: Tensors, expected: Iterable[LayerSparsity], fraction: float
) -> tuple[dict[str, torch.Tensor], tuple[NearMisses, ...], tuple[Declined, ...]]:
    """Set near misses to zero in every layer that should be 2:4.

    Args:
        tensors: All tensors by name.
        expected: Layers that should be 2:4, K a multiple of 4.
        fraction: Values up to this share of their row's largest may become zero.

    Returns:
        The tensors, what was changed, and layers or groups that were left alone.
    """
    result = dict(tensors)
    mended: list[NearMisses] = []
    declined: list[Declined] = []
    storages = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    for layer in expected:
        tensor = tensors[layer.tensor]
        rows = rows_of(tensor)
        found = near_miss_mask(rows, fraction)
        if not found.groups and not found.left:
            continue
        shared = storages[tensor.untyped_storage().data_ptr()] > 1
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
