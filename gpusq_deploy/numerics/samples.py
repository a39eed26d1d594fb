"""Where the samples of a batch stand in an array, and how that is found by running the batch in another order."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Float32 sums in another order differ by less of the largest value.
_ROUNDING = 1e-5
# Of what changes with the order of the samples, the most that may be left unexplained.
_UNEXPLAINED = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleAxis:
    """Axis `axis` of an array has `outer` · N · `inner` elements, N samples: [B·windows, …] has them as `inner`."""

    axis: int
    outer: int = 1
    inner: int = 1


def by_sample(array: Array, where: SampleAxis | None) -> Array:
    """The array as [N, ...]; [1, ...] where no axis is of samples: it counts as a whole. A view where that can be."""
    if where is None:
        return array[None]
    shape, axis = array.shape, where.axis
    if where.outer == where.inner == 1:
        return np.moveaxis(array, axis, 0)
    count = shape[axis] // (where.outer * where.inner)
    parts = (*shape[:axis], where.outer, count, where.inner, *shape[axis + 1 :])
    return np.moveaxis(array.reshape(parts), axis + 1, 0)


def find_sample_axis(plain: Array, rolled: Array, batch: int, axes: Collection[int] | None = None) -> SampleAxis | None:
    """The axis along which an answer turns as its batch does.

    Of several that explain it alike the first counts, one of the batch's own size before those of a multiple.

    Args:
        plain: The answer to samples 0, 1, …, N - 1; of any type.
        rolled: The answer to samples 1, …, N - 1, 0; of the same shape.
        batch: N.
        axes: Those that can be meant; None for all.

    Returns:
        None where no axis has N or a multiple of it, or where no order of the samples explains what changes.
    """
    candidates = list(_candidates(plain.shape, batch, axes))
    if not candidates or plain.shape != rolled.shape:
        return None
    left = [_largest(np.roll(by_sample(plain, where), -1, axis=0), by_sample(rolled, where)) for where in candidates]
    rounding = _ROUNDING * _largest(plain, np.zeros((), plain.dtype))
    best = min(left)
    if best > max(_UNEXPLAINED * _largest(plain, rolled), rounding):
        return None
    return next(where for where, difference in zip(candidates, left, strict=True) if difference <= max(best, rounding))


def _candidates(shape: tuple[int, ...], batch: int, axes: Collection[int] | None) -> Iterator[SampleAxis]:
    possible = [axis for axis in range(len(shape)) if axes is None or axis in axes]
    possible = [axis for axis in possible if shape[axis] and shape[axis] % batch == 0]
    yield from (SampleAxis(axis=axis) for axis in possible if shape[axis] == batch)
    for axis in possible:
        times = shape[axis] // batch
        if times > 1:
            yield SampleAxis(axis=axis, inner=times)
            yield SampleAxis(axis=axis, outer=times)


def _largest(one: Array, other: Array) -> float:
    """The largest difference; where either isn't finite, nothing is known."""
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.abs(np.subtract(one, other, dtype=np.float32))
    return float(np.max(differences, initial=0.0, where=np.isfinite(differences)))
