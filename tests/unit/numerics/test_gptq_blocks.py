"""INT4 second-order rounding against GPTQ as it is derived: the remaining Hessian's inverse, afresh at every column."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpusq_deploy.numerics.gptq import second_order_int4
from gpusq_deploy.numerics.low_bit import int4_blocks
from gpusq_deploy.numerics.two_four import magnitude_mask, violating_groups

BLOCK, DAMPING = 32, 0.05


def case(n: int, k: int, *, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Weights and the second moments of inputs that few directions explain."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((k // 4, k)) * random.uniform(0.2, 3, k)
    inputs = random.standard_normal((4 * k, k // 4)) @ mixing + 0.3 * random.standard_normal((4 * k, k))
    return random.standard_normal((n, k)).astype(np.float32), inputs.T @ inputs / len(inputs)


def slow(rows: npt.NDArray[np.float32], gram: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    _, scale = int4_blocks(rows, BLOCK)
    values, codes = rows.astype(np.float64), np.zeros(rows.shape, np.int64)
    damped = gram + DAMPING * np.mean(np.diag(gram)) * np.eye(len(gram))
    free = sorted(range(len(gram)), key=lambda column: (-gram[column, column], column))
    while free:
        first = free[0]
        inverse = np.linalg.inv(damped[np.ix_(free, free)])
        for row in range(len(rows)):
            step = float(scale[row, first // BLOCK])
            code = 0 if rows[row, first] == 0 else round(values[row, first] / step)
            codes[row, first] = min(max(code, -8), 7)
            error = values[row, first] - codes[row, first] * step
            values[row, free] -= error * inverse[0] / inverse[0, 0]
        free = free[1:]
    return codes


def loss(rows: Any, codes: Any, scale: Any, gram: npt.NDArray[np.float64]) -> float:
    error = rows.astype(np.float64) - codes * np.repeat(scale, BLOCK, axis=1)
    return float(np.trace(error @ gram @ error.T))


@pytest.mark.parametrize("seed", [0, 1])
def test_it_gives_gptq_s_codes(seed: int) -> None:
    rows, gram = case(5, 64, seed=seed)
    codes, scale = second_order_int4(rows, BLOCK, gram, damping=DAMPING)
    assert np.mean(codes == slow(rows, gram)) > 0.98  # float32 decides a tie otherwise now and then
    assert np.array_equal(scale, int4_blocks(rows, BLOCK)[1])


def test_the_output_moves_much_less_than_with_rounding_to_nearest() -> None:
    rows, gram = case(16, 128, seed=2)
    nearest, scale = int4_blocks(rows, BLOCK)
    codes, _ = second_order_int4(rows, BLOCK, gram, damping=DAMPING)
    assert loss(rows, codes, scale, gram) < 0.5 * loss(rows, nearest, scale, gram)


def test_zeros_stay_zeros() -> None:
    rows, gram = case(8, 64, seed=3)
    rows *= magnitude_mask(rows)
    codes, _ = second_order_int4(rows, BLOCK, gram, damping=DAMPING)
    assert not codes[rows == 0].any()
    assert not len(violating_groups(codes))


def test_moments_that_are_none_are_refused() -> None:
    rows, _ = case(2, 32, seed=4)
    with pytest.raises(ValueError, match="not positive definite"):
        second_order_int4(rows, BLOCK, -np.eye(32), damping=0.0)
