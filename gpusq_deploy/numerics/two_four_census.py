"""The 2:4 check at memory speed: on raw bits, in pieces that stay in a core's cache, in the order of storage.

A value is zero if all its bits but a float's sign are: -0.0 counts as zero, NaN and subnormal numbers don't.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from gpusq_deploy.numerics.two_four import GROUP, KEPT, Matrix

Bools = npt.NDArray[np.bool_]
Place = tuple[int, int]

# Elements per piece. At 2^18, a piece of float32, its scratch and its flags share a second-level cache of 1 MB or
# less with little left over, and numpy's cost per call (about a microsecond) vanishes.
_PIECE = 1 << 18
_PLACES = 4
_UNSIGNED: dict[int, type[np.unsignedinteger[Any]]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_LARGEST = float(np.finfo(np.float32).max)
# Four flags are one uint32; times this, their sum stands in its highest byte.
_ADD_BYTES = np.uint32(0x01010101)
_THREE = np.uint32((KEPT + 1) << 24)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCensus:
    """What a matrix [N, K] holds.

    Attributes:
        groups: Groups of four along K.
        violations: Those with more than two non-zeros.
        places: (row, group) of the first few violations in row-major order.
        zeros: Number of zeros.
    """

    groups: int
    violations: int
    places: tuple[Place, ...]
    zeros: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Offender:
    """The violation that can least be explained by rounding: the largest third-largest magnitude of a group.

    `ratio` is `value` over its row's largest magnitude, 0...1. NaN and infinity count as the largest number.
    """

    row: int
    group: int
    value: float
    ratio: float


def census(matrix: Matrix) -> GroupCensus:
    """Count zeros and violating groups.

    Rows that lie one after another and columns that do (ONNX keeps MatMul weights as K x N) are both read where they
    are. Any other order is copied piece by piece.

    Args:
        matrix: [N, K] of any numeric type, K a multiple of 4.

    Raises:
        ValueError: K is not a multiple of 4, or the array isn't a matrix.
    """
    if matrix.ndim != 2 or matrix.shape[1] % GROUP:
        raise ValueError(f"2:4 needs a matrix [N, K] with K a multiple of 4, not {list(matrix.shape)}")
    if not matrix.size:
        return GroupCensus(groups=0, violations=0, places=(), zeros=0)
    found = list(_by_columns(matrix.T) if _is_stored_by_columns(matrix) else _by_rows(matrix))
    places = sorted(place for piece in found for place in piece.places)[:_PLACES]
    return GroupCensus(
        groups=matrix.size // GROUP,
        violations=sum(piece.violations for piece in found),
        places=tuple(places),
        zeros=matrix.size - sum(piece.nonzeros for piece in found),
    )


def worst_offender(matrix: Matrix) -> Offender | None:
    """The largest value, against its row's largest, that would have to go for every group to be 2:4; None if it is.

    Args:
        matrix: As for `census`.
    """
    worst: Offender | None = None
    by_columns = _is_stored_by_columns(matrix)
    step = max(1, _PIECE // matrix.shape[1])
    for start in range(0, matrix.shape[0], step):
        rows = matrix[start : start + step]
        keys = _keys(rows.T if by_columns else rows)
        axis = 0 if by_columns else 1
        third = _third_largest(keys, axis)
        values = _values(third.max(axis=axis), matrix.dtype)
        largest = _values(keys.max(axis=axis), matrix.dtype)
        ratios = values / np.where(largest > 0, largest, 1)
        row = int(np.argmax(ratios))
        if ratios[row] > (0.0 if worst is None else worst.ratio):
            group = int(np.argmax(third.take(row, axis=1 - axis)))
            worst = Offender(row=start + row, group=group, value=float(values[row]), ratio=float(ratios[row]))
    return worst


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    violations: int
    places: list[Place]
    nonzeros: int


class _NonZero:
    """Flags of non-zeros, in memory that is used again for every piece."""

    def __init__(self, dtype: np.dtype[Any], size: int) -> None:
        is_float = _is_float(dtype)
        self._bits = _UNSIGNED[dtype.itemsize] if is_float or dtype.kind in "iub" else None
        self._shifted = np.empty(size, self._bits) if is_float and self._bits is not None else None
        self._flags = np.empty(size, np.bool_)

    def __call__(self, piece: Matrix) -> Bools:
        flags = self._flags[: piece.size].reshape(piece.shape)
        if self._bits is None:  # a type without plain bits, such as float8: its own comparison decides
            flags[...] = piece != 0
            return flags
        bits = piece.view(self._bits)
        if self._shifted is not None:
            # Adding a number to itself moves its sign out.
            bits = np.add(bits, bits, out=self._shifted[: piece.size].reshape(piece.shape))
        np.not_equal(bits, 0, out=flags)
        return flags


def _by_rows(matrix: Matrix) -> Iterator[_Piece]:
    """Rows in storage order; a group's flags are four neighbouring bytes."""
    groups = matrix.shape[1] // GROUP
    nonzero = _NonZero(matrix.dtype, min(_PIECE, matrix.size))
    sums = np.empty(_PIECE // GROUP, np.uint32)
    for first, piece in _flat_pieces(matrix):
        flags = nonzero(piece)
        counted = np.multiply(flags.view(np.uint32), _ADD_BYTES, out=sums[: piece.size // GROUP])
        violations, places = 0, list[Place]()
        if counted.max() >= _THREE:
            bad = counted >= _THREE
            violations = int(np.count_nonzero(bad))
            places = [divmod(first + int(index), groups) for index in np.flatnonzero(bad)[:_PLACES]]
        yield _Piece(violations=violations, places=places, nonzeros=int(np.count_nonzero(flags)))


def _flat_pieces(matrix: Matrix) -> Iterator[tuple[int, Matrix]]:
    """The matrix as one line, cut at group borders: (index of the first group, values)."""
    if matrix.flags.c_contiguous:
        line = matrix.reshape(-1)
        for start in range(0, line.size, _PIECE):
            yield start // GROUP, line[start : start + _PIECE]
        return
    step = max(1, _PIECE // matrix.shape[1])
    for row in range(0, matrix.shape[0], step):
        line = np.ascontiguousarray(matrix[row : row + step]).reshape(-1)
        for start in range(0, line.size, _PIECE):
            yield (row * matrix.shape[1] + start) // GROUP, line[start : start + _PIECE]


def _by_columns(stored: Matrix) -> Iterator[_Piece]:
    """[K, N] in storage order: a group is four rows, and its flags are added up without a transpose."""
    k, n = stored.shape
    width = min(n, _PIECE // GROUP)
    depth = min(k, max(GROUP, _PIECE // width // GROUP * GROUP))
    nonzero = _NonZero(stored.dtype, depth * width)
    sums = np.empty(depth // GROUP * width, np.uint8)
    for row in range(0, k, depth):
        for column in range(0, n, width):
            piece = stored[row : row + depth, column : column + width]
            flags = nonzero(piece)
            four = flags.view(np.uint8).reshape(len(piece) // GROUP, GROUP, piece.shape[1])
            counted = sums[: piece.size // GROUP].reshape(len(four), piece.shape[1])
            np.add(four[:, 0], four[:, 1], out=counted)
            np.add(counted, four[:, 2], out=counted)
            np.add(counted, four[:, 3], out=counted)
            violations, places = 0, list[Place]()
            if counted.max() > KEPT:
                bad = counted > KEPT
                violations = int(np.count_nonzero(bad))
                places = _first_by_row(bad.T, row=column, group=row // GROUP)
            yield _Piece(violations=violations, places=places, nonzeros=int(np.count_nonzero(flags)))


def _first_by_row(bad: Bools, *, row: int, group: int) -> list[Place]:
    """The first few places in row-major order, found without listing all of them."""
    rows = np.flatnonzero(bad.any(axis=1))[:_PLACES]
    places = np.argwhere(bad[rows])[:_PLACES]
    return [(row + int(rows[index]), group + int(column)) for index, column in places]


def _is_stored_by_columns(matrix: Matrix) -> bool:
    return matrix.T.flags.c_contiguous and not matrix.flags.c_contiguous


def _keys(values: Matrix) -> Matrix:
    """Unsigned integers in the order of the magnitudes: a float's bits without its sign are such."""
    if _is_float(values.dtype):
        width = values.dtype.itemsize
        bits = values.view(_UNSIGNED[width])
        return cast("Matrix", bits & bits.dtype.type((1 << 8 * width - 1) - 1))
    if values.dtype.kind == "i":
        return cast("Matrix", np.abs(values).view(_UNSIGNED[values.dtype.itemsize]))
    return values if values.dtype.kind in "ub" else np.abs(values.astype(np.float32))


def _values(keys: Matrix, dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
    numbers = keys.view(dtype) if _is_float(dtype) else keys
    return np.nan_to_num(numbers.astype(np.float64), nan=_LARGEST, posinf=_LARGEST)


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _third_largest(keys: Matrix, axis: int) -> Matrix:
    """Of each four along `axis`, the third in descending order; above zero only where three are non-zero."""
    a, b, c, d = (keys[index::GROUP] if axis == 0 else keys[:, index::GROUP] for index in range(GROUP))
    middle = np.maximum(np.minimum(a, b), np.minimum(c, d))
    other = np.minimum(np.maximum(a, b), np.maximum(c, d))
    third: Matrix = np.minimum(middle, other)
    return third
