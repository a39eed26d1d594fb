"""The fast 2:4 check against one that looks at four values at a time, for every type, order and border of a piece."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gpusq_deploy.numerics import two_four_census as fast
from gpusq_deploy.numerics.two_four import magnitude_mask
from gpusq_deploy.numerics.two_four_census import census, worst_offender

Matrix = npt.NDArray[Any]
DTYPES: list[Any] = [
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.int8,
    np.uint8,
    np.float64,
    np.int32,
    np.bool_,
    ml_dtypes.float8_e4m3fn,
]


def slow_census(matrix: Matrix) -> tuple[int, list[tuple[int, int]]]:
    """Zeros, and every violating (row, group) in reading order."""
    zeros, bad = 0, list[tuple[int, int]]()
    for row, line in enumerate(matrix.astype(np.float64).tolist()):
        for group in range(len(line) // 4):
            count = sum(value != 0 for value in line[4 * group : 4 * group + 4])
            zeros += 4 - count
            if count > 2:
                bad.append((row, group))
    return zeros, bad


def slow_worst(matrix: Matrix) -> float:
    """The largest ratio of a group's third value to its row's largest."""
    worst = 0.0
    for line in np.abs(matrix.astype(np.float64)).tolist():
        largest = max(line)
        for start in range(0, len(line), 4):
            third = sorted(line[start : start + 4])[1]
            worst = max(worst, third / largest if largest else 0.0)
    return worst


def example(dtype: Any, seed: int) -> Matrix:
    random = np.random.default_rng(seed)
    shape = (int(random.integers(1, 30)), 4 * int(random.integers(1, 12)))
    share = random.choice([0.1, 0.3, 0.6, 1.0])
    values = random.integers(-3, 4, shape) * (random.random(shape) < share)
    matrix: Matrix = (np.abs(values) if dtype in (np.uint8, np.bool_) else values).astype(dtype)
    return matrix


def orders(matrix: Matrix) -> dict[str, Matrix]:
    """The same matrix as stored by rows, by columns, with gaps, backwards, and at an odd address."""
    raw = np.zeros(matrix.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(matrix.tobytes(), np.uint8)
    columns = np.zeros(matrix.nbytes + 1, np.uint8)
    columns[1:] = np.frombuffer(np.ascontiguousarray(matrix.T).tobytes(), np.uint8)
    return {
        "rows": matrix,
        "columns": np.ascontiguousarray(matrix.T).T,
        "gaps": np.repeat(matrix, 2, axis=0)[::2],
        "reversed": np.ascontiguousarray(matrix[::-1])[::-1],
        "odd": raw[1:].view(matrix.dtype).reshape(matrix.shape),
        "odd columns": columns[1:].view(matrix.dtype).reshape(matrix.shape[::-1]).T,
    }


@pytest.mark.parametrize("piece", [16, 64, 1 << 18])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_it_counts_and_locates_as_the_slow_check_does(dtype: Any, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_PIECE", piece)
    for seed in range(12):
        matrix = example(dtype, seed)
        zeros, bad = slow_census(matrix)
        worst = slow_worst(matrix)
        for order, view in orders(matrix).items():
            found = census(view)
            assert (found.zeros, found.violations) == (zeros, len(bad)), order
            assert list(found.places) == bad[: len(found.places)], order
            assert len(found.places) == min(len(bad), 4), order
            offender = worst_offender(view)
            assert (offender is None) == (not bad), order
            assert math.isclose(0.0 if offender is None else offender.ratio, worst, rel_tol=1e-6), order


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=lambda dtype: np.dtype(dtype).name)
def test_minus_zero_is_a_zero_and_nan_and_subnormals_are_not(dtype: Any) -> None:
    tiny = {"float32": 1e-45, "float16": 6e-8, "bfloat16": 1e-40}[np.dtype(dtype).name]
    matrix = np.array([[1, -0.0, -0.0, 2], [np.nan, tiny, -tiny, 0], [np.inf, 1, 0, 0]], dtype)
    assert matrix[1, 1] != 0
    for order, view in orders(matrix).items():
        found = census(view)
        assert (found.zeros, found.violations, found.places) == (5, 1, ((1, 0),)), order


def test_the_smallest_int8_counts_as_its_size() -> None:
    worst = worst_offender(np.array([[127, -128, 64, 0]], np.int8))
    assert worst is not None
    assert (worst.row, worst.group, worst.value, worst.ratio) == (0, 0, 64.0, 0.5)


def test_the_worst_group_is_the_one_that_loses_most_of_its_row() -> None:
    matrix = np.zeros((3, 8), np.float32)
    matrix[0] = [100, 50, 5, 0, 0, 0, 0, 0]
    matrix[2] = [0, 0, 0, 1, 0.5, 0.25, -0.75, 0]
    for view in orders(matrix).values():
        worst = worst_offender(view)
        assert worst is not None
        assert (worst.row, worst.group, worst.value, worst.ratio) == (2, 1, 0.25, 0.25)


def test_nan_is_the_worst_there_is() -> None:
    worst = worst_offender(np.array([[np.nan, np.nan, np.nan, 0], [1, 1, 1, 0]], np.float32))
    assert worst is not None
    assert (worst.row, worst.ratio) == (0, 1.0)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_an_empty_matrix_is_valid(shape: tuple[int, int]) -> None:
    assert census(np.zeros(shape, np.float32)).violations == 0


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 6), (1, 2, 4)])
def test_what_has_no_groups_of_four_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        census(np.zeros(shape, np.float32))


def test_one_violation_is_found_wherever_it_stands() -> None:
    random = np.random.default_rng(0)
    values = random.uniform(1, 2, (257, 1028)).astype(np.float32)
    good = np.where(magnitude_mask(values), values, np.float32(0))
    for row, group in zip(random.integers(0, 257, 20).tolist(), random.integers(0, 257, 20).tolist(), strict=True):
        bad = good.copy()
        bad[row, 4 * group : 4 * group + 4] = 1e-30
        for view in (bad, np.ascontiguousarray(bad.T).T):
            assert (census(view).violations, census(view).places) == (1, ((row, group),))
