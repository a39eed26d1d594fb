"""Estimated sums against the sums themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpusq_deploy.numerics.trace_estimate import spread

Array = npt.NDArray[Any]


def case(n: int, k: int, directions: int) -> tuple[Array, Array]:
    """Rows [n, k] and a covariance [k, k] of that rank."""
    random = np.random.default_rng(n)
    mixing = random.standard_normal((k, directions)) * random.uniform(0.1, 3, directions)
    return random.standard_normal((n, k)).astype(np.float32), (mixing @ mixing.T).astype(np.float32)


@pytest.mark.parametrize("n", [1, 8, 64])
def test_few_rows_are_summed_exactly(n: int) -> None:
    rows, covariance = case(n, 24, 24)
    assert spread(rows, covariance) == pytest.approx(float(np.trace(rows @ covariance @ rows.T)), rel=1e-5)


@pytest.mark.parametrize(("directions", "within"), [(1, 0.5), (40, 0.2)])
def test_many_rows_are_estimated(directions: int, within: float) -> None:
    """One direction is the worst case: a deviation of 18 %."""
    rows, covariance = case(900, 40, directions)
    wanted = float(np.trace(rows.astype(np.float64) @ covariance.astype(np.float64) @ rows.T))
    assert spread(rows, covariance) == pytest.approx(wanted, rel=within)
    assert spread(rows, covariance) == spread(rows, covariance)


def test_rounding_errors_of_a_covariance_give_nothing_negative() -> None:
    assert spread(np.ones((2, 2), np.float32), -1e-9 * np.eye(2, dtype=np.float32)) == 0
