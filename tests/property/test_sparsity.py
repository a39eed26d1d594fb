"""2:4 masks: what holds for every matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as arrays

from gpusq_deploy.numerics.two_four import magnitude_mask, violating_groups, zero_fraction

F32 = npt.NDArray[np.float32]
shapes = st.tuples(st.integers(1, 5), st.integers(1, 4).map(lambda n: 4 * n))
matrices = arrays.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=True, allow_infinity=True))
codes = arrays.arrays(np.int8, shapes)


@given(matrix=matrices)
def test_every_mask_keeps_exactly_two_of_four(matrix: F32) -> None:
    assert (magnitude_mask(matrix).reshape(-1, 4).sum(axis=1) == 2).all()


@given(matrix=arrays.arrays(np.float32, shapes, elements=st.floats(-1e6, 1e6, width=32)))
def test_what_is_dropped_is_nowhere_larger_than_what_is_kept(matrix: F32) -> None:
    mask = magnitude_mask(matrix).reshape(-1, 4)
    size = np.abs(matrix).reshape(-1, 4)
    kept, dropped = np.where(mask, size, np.inf).min(axis=1), np.where(mask, -np.inf, size).max(axis=1)
    assert (dropped <= kept).all()


@given(matrix=arrays.arrays(np.float32, shapes, elements=st.floats(-1e6, 1e6, width=32)))
def test_masking_makes_a_matrix_sparse_and_a_second_time_changes_nothing(matrix: F32) -> None:
    once = np.where(magnitude_mask(matrix), matrix, np.float32(0))
    assert not len(violating_groups(once))
    np.testing.assert_array_equal(np.where(magnitude_mask(once), once, np.float32(0)), once)


@given(matrix=codes)
def test_a_violation_is_a_group_with_more_than_two_codes(matrix: npt.NDArray[np.int8]) -> None:
    bad = {(row, group) for row, group in violating_groups(matrix).tolist()}
    for row in range(matrix.shape[0]):
        for group in range(matrix.shape[1] // 4):
            four = matrix[row, 4 * group : 4 * group + 4].tolist()
            assert ((row, group) in bad) == (sum(value != 0 for value in four) > 2)


@given(matrix=codes)
def test_the_zero_fraction_counts_zeros(matrix: npt.NDArray[np.int8]) -> None:
    assert zero_fraction(matrix) == 1 - sum(value != 0 for value in matrix.ravel().tolist()) / matrix.size
