"""Second-order rounding against GPTQ as it is derived: the inverse of the remaining Hessian, afresh at every column."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpusq_deploy.numerics.affine import amax_per_channel, dequantize, quantize, scale_from_amax
from gpusq_deploy.numerics.gptq import second_order_codes
from gpusq_deploy.numerics.two_four import magnitude_mask, violating_groups

Floats = npt.NDArray[np.float32]
DAMPING = 0.01


def case(n: int, k: int, *, seed: int) -> tuple[Floats, Floats, npt.NDArray[np.float64]]:
    """Weights [n, k], their scales, and the second moments of inputs that few directions explain."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((n, k)).astype(np.float32)
    mixing = random.standard_normal((k // 4, k)) * random.uniform(0.2, 3, k)
    inputs = random.standard_normal((4 * k, k // 4)) @ mixing + 0.3 * random.standard_normal((4 * k, k))
    return rows, scales(rows), inputs.T @ inputs / len(inputs)


def scales(rows: Floats) -> Floats:
    return scale_from_amax(amax_per_channel(rows, 0)).astype(np.float32)


def slow(rows: Floats, scale: Floats, gram: npt.NDArray[np.float64], damping: float) -> npt.NDArray[np.int64]:
    """Round the free column of the largest input power; spread its error by the inverse of what is still free."""
    values, codes = rows.astype(np.float64), np.zeros(rows.shape, np.int64)
    damped = gram + damping * np.mean(np.diag(gram)) * np.eye(len(gram))
    free = sorted(range(len(gram)), key=lambda column: (-gram[column, column], column))
    while free:
        inverse = np.linalg.inv(damped[np.ix_(free, free)])
        for row in range(len(rows)):
            code = 0 if rows[row, free[0]] == 0 else round(values[row, free[0]] / float(scale[row]))
            codes[row, free[0]] = min(max(code, -127), 127)
            error = values[row, free[0]] - codes[row, free[0]] * float(scale[row])
            values[row, free] -= error * inverse[0] / inverse[0, 0]
        free = free[1:]
    return codes


def loss(rows: Floats, scale: Floats, codes: Any, gram: npt.NDArray[np.float64]) -> float:
    error = rows.astype(np.float64) - dequantize(codes, scale, axis=0)
    return float(np.trace(error @ gram @ error.T))


@pytest.mark.parametrize("k", [4, 64, 65, 130])
def test_codes_are_those_of_the_slow_derivation(k: int) -> None:
    """Below, at and above the width of one block."""
    rows, scale, gram = case(5, k, seed=k)
    np.testing.assert_array_equal(
        second_order_codes(rows, scale, gram, damping=DAMPING), slow(rows, scale, gram, DAMPING)
    )


def test_zeros_count_as_fixed_in_the_slow_derivation_too() -> None:
    rows, _, gram = case(6, 72, seed=3)
    rows = np.where(magnitude_mask(rows), rows, np.float32(0))
    scale = scales(rows)
    codes = second_order_codes(rows, scale, gram, damping=DAMPING)
    np.testing.assert_array_equal(codes, slow(rows, scale, gram, DAMPING))
    assert not codes[rows == 0].any()
    assert len(violating_groups(codes)) == 0


@pytest.mark.parametrize("seed", range(6))
def test_the_outputs_move_less_than_with_rounding_to_nearest(seed: int) -> None:
    rows, scale, gram = case(24, 48, seed=seed)
    nearest = quantize(rows, scale, axis=0)
    chosen = second_order_codes(rows, scale, gram, damping=DAMPING)
    assert loss(rows, scale, chosen, gram) < 0.7 * loss(rows, scale, nearest, gram)


def test_inputs_that_do_not_correlate_leave_nothing_to_make_up_for() -> None:
    rows, scale, _ = case(7, 80, seed=9)
    gram = np.diag(np.random.default_rng(1).uniform(0.1, 5, 80))
    np.testing.assert_array_equal(second_order_codes(rows, scale, gram, damping=DAMPING), quantize(rows, scale, axis=0))


def test_what_is_pushed_beyond_the_range_is_clipped() -> None:
    """The first input is twice the second, whose weight would have to become 127 + 2 · 0.49."""
    rows, scale = np.array([[0.49, 127.0]], np.float32), np.array([1.0], np.float32)
    gram = np.array([[4.01, 2.0], [2.0, 1.0]])
    assert second_order_codes(rows, scale, gram, damping=1e-6).tolist() == [[0, 127]]
    assert second_order_codes(-rows, scale, gram, damping=1e-6).tolist() == [[0, -127]]


def test_the_order_is_by_falling_power_and_the_arguments_are_left_alone() -> None:
    """The strong column is rounded to nearest; the weak one takes up its error. The other way round it would not."""
    rows, scale = np.array([[10.0, 3.4]], np.float32), np.array([1.0], np.float32)
    gram = np.array([[1.0, 1.9], [1.9, 4.0]])
    kept = rows.copy(), scale.copy(), gram.copy()
    # 3.4 becomes 3; the first column gets 10 + 0.4 * 1.9 = 10.76, so 11.
    assert second_order_codes(rows, scale, gram, damping=1e-6).tolist() == [[11, 3]]
    for before, after in zip(kept, (rows, scale, gram), strict=True):
        np.testing.assert_array_equal(before, after)


def test_dead_inputs_and_dead_rows_are_no_trouble() -> None:
    rows, _, gram = case(4, 16, seed=5)
    rows[1] = 0
    gram[3], gram[:, 3] = 0, 0
    codes = second_order_codes(rows, scales(rows), gram, damping=DAMPING)
    assert not codes[1].any()
    np.testing.assert_array_equal(codes, slow(rows, scales(rows), gram, DAMPING))
    np.testing.assert_array_equal(
        second_order_codes(rows, scales(rows), np.zeros((16, 16)), damping=DAMPING),
        quantize(rows, scales(rows), axis=0),
    )


def test_moments_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        second_order_codes(
            np.ones((1, 2), np.float32), np.ones(1, np.float32), np.array([[1.0, 2.0], [2.0, 1.0]]), damping=DAMPING
        )
