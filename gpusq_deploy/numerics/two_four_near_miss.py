"""Groups of four that hold more than two non-zeros only because values meant to be zero aren't quite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpusq_deploy.numerics.two_four import GROUP, KEPT, Mask, Matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class NearMissMask:
    """What to set to zero in a matrix [N, K].

    Attributes:
        mask: Booleans [N, K], True where a value has to go.
        groups: Groups that become 2:4 by it.
        left: Groups that stay broken: their third-largest value is too large. Nothing of them is masked.
    """

    mask: Mask
    groups: int
    left: int


def near_miss_mask(matrix: Matrix, fraction: float) -> NearMissMask:
    """Find the values beyond the two largest of their group that are at most `fraction` of their row's largest.

    A group is mended whole or left whole. Of equal magnitudes, those that come first stay.

    Args:
        matrix: [N, K] of any numeric type, K a multiple of 4.
        fraction: 0...1, of the row's largest magnitude.

    Raises:
        ValueError: K is not a multiple of 4, or the array isn't a matrix.
    """
    if matrix.ndim != 2 or matrix.shape[1] % GROUP:
        raise ValueError(f"2:4 needs a matrix [N, K] with K a multiple of 4, not {list(matrix.shape)}")
    magnitudes = np.abs(matrix.astype(np.float64))
    largest = magnitudes.max(axis=1, initial=0.0)
    ratios = magnitudes / np.where(largest == 0, 1, largest)[:, None]
    grouped = ratios.reshape(len(ratios), -1, GROUP)
    order = np.argsort(-grouped, axis=2, kind="stable")
    third = np.take_along_axis(grouped, order[..., KEPT : KEPT + 1], axis=2)[..., 0]
    broken = np.count_nonzero(grouped, axis=2) > KEPT
    mended = broken & (third <= fraction)
    mask = np.zeros(grouped.shape, dtype=np.bool_)
    np.put_along_axis(mask, order[..., KEPT:], values=True, axis=2)
    mask &= mended[..., None] & (grouped != 0)
    groups = int(np.count_nonzero(mended))
    return NearMissMask(mask=mask.reshape(matrix.shape), groups=groups, left=int(np.count_nonzero(broken)) - groups)
