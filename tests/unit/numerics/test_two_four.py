"""2:4 checks and masks against three nested loops."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gpusq_deploy.numerics.two_four import magnitude_mask, rows_from_conv, violating_groups, zero_fraction

Matrix = npt.NDArray[Any]


def violations_by_loop(matrix: Matrix) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for row in range(matrix.shape[0]):
        for group in range(matrix.shape[1] // 4):
            nonzero = 0
            for place in range(4):
                nonzero += bool(matrix[row, 4 * group + place] != 0)
            if nonzero > 2:
                found.append((row, group))
    return found


def mask_by_loop(matrix: Matrix) -> list[list[bool]]:
    """Twice take the largest that is left; `>` alone makes the first of equal ones win."""
    mask = [[False] * matrix.shape[1] for _ in range(matrix.shape[0])]
    for row in range(matrix.shape[0]):
        for start in range(0, matrix.shape[1], 4):
            left = list(range(start, start + 4))
            for _ in range(2):
                best = left[0]
                for place in left[1:]:
                    if abs(float(matrix[row, place])) > abs(float(matrix[row, best])):
                        best = place
                mask[row][best] = True
                left.remove(best)
    return mask


def matrices() -> list[Matrix]:
    random = np.random.default_rng(3)
    ties = random.integers(-2, 3, (9, 16)).astype(np.float32)
    return [
        random.standard_normal((7, 24)).astype(np.float32),
        random.standard_normal((7, 24)).astype(np.float16),
        random.standard_normal((7, 24)).astype(ml_dtypes.bfloat16),
        ties,
        random.integers(-128, 128, (9, 16)).astype(np.int8),
        random.integers(0, 256, (9, 16)).astype(np.uint8),
        random.integers(0, 2, (9, 16)).astype(np.bool_),
        random.standard_normal((16, 9)).astype(np.float32).T[:, :8],
    ]


@pytest.mark.parametrize("matrix", matrices(), ids=lambda matrix: str(matrix.dtype))
def test_violations_are_those_of_three_loops(matrix: Matrix) -> None:
    assert [tuple(place) for place in violating_groups(matrix).tolist()] == violations_by_loop(matrix)


@pytest.mark.parametrize("matrix", matrices(), ids=lambda matrix: str(matrix.dtype))
def test_masks_are_those_of_three_loops_also_where_magnitudes_tie(matrix: Matrix) -> None:
    assert magnitude_mask(matrix).tolist() == mask_by_loop(matrix)


def test_the_magnitude_of_the_smallest_int8_counts() -> None:
    matrix = np.array([[127, -128, -126, 126, 1, 2, -128, 3]], np.int8)
    assert magnitude_mask(matrix).tolist() == [[True, True, False, False, False, False, True, True]]


def test_negative_zero_is_a_zero() -> None:
    assert not len(violating_groups(np.array([[-0.0, 1, -0.0, 2]], np.float32)))
    assert zero_fraction(np.array([[-0.0, 1, 0.0, 2]], np.float32)) == 0.5


def test_nan_counts_as_a_value_and_a_mask_still_keeps_two() -> None:
    matrix = np.array([[np.nan, np.nan, np.nan, 0], [np.nan, 1, 2, 3]], np.float32)
    assert violating_groups(matrix).tolist() == [[0, 0], [1, 0]]
    assert magnitude_mask(matrix).sum(axis=1).tolist() == [2, 2]


def test_subnormal_weights_are_not_zeros() -> None:
    matrix = np.full((1, 4), 1e-45, np.float32)
    assert len(violating_groups(matrix)) == 1
    assert zero_fraction(matrix) == 0


def test_violations_come_in_row_major_order() -> None:
    matrix = np.zeros((3, 12), np.float32)
    matrix[2, 0:3] = matrix[0, 8:12] = matrix[2, 4:8] = 1
    assert violating_groups(matrix).tolist() == [[0, 2], [2, 0], [2, 1]]


def test_groups_run_along_rows_not_columns() -> None:
    matrix = np.zeros((4, 4), np.float32)
    matrix[:, 0] = 1
    assert not len(violating_groups(matrix))
    assert len(violating_groups(np.ascontiguousarray(matrix.T))) == 1


@pytest.mark.parametrize("shape", [(2, 6), (8,), (2, 4, 4), (4, 3)])
def test_what_is_no_matrix_of_whole_groups_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="K a multiple of 4"):
        violating_groups(np.zeros(shape))
    with pytest.raises(ValueError, match="K a multiple of 4"):
        magnitude_mask(np.zeros(shape))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)])
def test_an_empty_matrix_violates_nothing(shape: tuple[int, int]) -> None:
    assert violating_groups(np.zeros(shape)).shape == (0, 2)
    assert magnitude_mask(np.zeros(shape)).shape == shape
    assert zero_fraction(np.zeros(shape)) == 0


def test_conv_rows_run_over_channels_for_each_kernel_position() -> None:
    weight = np.arange(2 * 4 * 3 * 2).reshape(2, 4, 3, 2)
    rows = rows_from_conv(weight)
    assert rows.shape == (2 * 3 * 2, 4)
    row = 0
    for channel in range(2):
        for high in range(3):
            for wide in range(2):
                assert rows[row].tolist() == [weight[channel, c, high, wide] for c in range(4)]
                row += 1
