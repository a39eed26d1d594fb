"""Near misses against a loop over groups."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings, strategies as st

from gpusq_deploy.numerics.two_four_near_miss import near_miss_mask


def slowly(matrix: npt.NDArray[np.float64], fraction: float) -> tuple[npt.NDArray[np.bool_], int, int]:
    mask = np.zeros(matrix.shape, np.bool_)
    groups = left = 0
    for row, values in enumerate(matrix):
        largest = max(abs(value) for value in values)
        for start in range(0, len(values), 4):
            places = sorted(range(start, start + 4), key=lambda place: (-abs(values[place]), place))
            surplus = [place for place in places[2:] if values[place] != 0]
            if not surplus:
                continue
            if all(abs(values[place]) / largest <= fraction for place in surplus):
                groups += 1
                mask[row, surplus] = True
            else:
                left += 1
    return mask, groups, left


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 5),
    groups=st.integers(1, 5),
    fraction=st.sampled_from([0.0, 1e-3, 0.1, 0.5, 1.0]),
)
def test_it_masks_what_a_loop_masks(seed: int, rows: int, groups: int, fraction: float) -> None:
    random = np.random.default_rng(seed)
    # Few magnitudes, so that ties and values right at the limit occur.
    magnitudes = random.choice([0.0, 0.001, 0.05, 0.1, 0.5, 1.0], size=(rows, 4 * groups))
    matrix = magnitudes * random.choice([-1.0, 1.0], size=magnitudes.shape)
    mask, mended, left = slowly(matrix, fraction)
    found = near_miss_mask(matrix, fraction)
    np.testing.assert_array_equal(found.mask, mask)
    assert (found.groups, found.left) == (mended, left)


def test_a_group_with_three_large_values_is_left_whole() -> None:
    found = near_miss_mask(np.array([[1.0, 0.9, 0.8, 1e-6]]), 1e-3)
    assert (found.groups, found.left) == (0, 1)
    assert not found.mask.any()


def test_nothing_is_masked_where_a_row_holds_nan() -> None:
    found = near_miss_mask(np.array([[np.nan, 1.0, 1e-9, 0.0]]), 1e-3)
    assert (found.groups, found.left) == (0, 1)


@pytest.mark.parametrize("shape", [(2, 6), (8,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        near_miss_mask(np.zeros(shape), 0.1)
