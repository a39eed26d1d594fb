"""2:4 structured sparsity on matrices [N, K]: of every four consecutive values along K, at most two are non-zero.

Source: Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv 2104.08378.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

GROUP = 4
KEPT = 2


def rows_from_conv(weight: Matrix) -> Matrix:
    """View [N, C, *kernel] as rows over C: [N·kernel positions, C], the axis that sparse tensor cores contract."""
    return np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1])


def violating_groups(matrix: Matrix) -> npt.NDArray[np.int64]:
    """Groups with more than two non-zeros, in row-major order: [violations, 2] of (row, group).

    Args:
        matrix: [N, K] of any numeric type, K a multiple of 4.

    Raises:
        ValueError: K is not a multiple of 4, or the array isn't a matrix.
    """
    counts = np.count_nonzero(_grouped(matrix), axis=2)
    return np.argwhere(counts > KEPT)


def magnitude_mask(matrix: Matrix) -> Mask:
    """Keep the two largest magnitudes of each group of four; of equal ones, those that come first.

    Returns:
        Booleans [N, K]; exactly two per group are True.
    """
    # float64: the magnitude of INT8's -128 is no INT8, and unsigned numbers can't be negated.
    grouped = np.abs(_grouped(matrix).astype(np.float64))
    order = np.argsort(-grouped, axis=2, kind="stable")
    mask = np.zeros(grouped.shape, dtype=np.bool_)
    np.put_along_axis(mask, order[..., :KEPT], values=True, axis=2)
    return mask.reshape(matrix.shape)


def zero_fraction(matrix: Matrix) -> float:
    """Share of exact zeros, 0…1."""
    # float: since numpy 2.4 `count_nonzero` returns a numpy scalar.
    return float(1.0 - np.count_nonzero(matrix) / matrix.size) if matrix.size else 0.0


def _grouped(matrix: Matrix) -> Matrix:
    if matrix.ndim != 2 or matrix.shape[1] % GROUP:
        raise ValueError(f"2:4 needs a matrix [N, K] with K a multiple of 4, not {list(matrix.shape)}")
    return matrix.reshape(matrix.shape[0], matrix.shape[1] // GROUP, GROUP)
