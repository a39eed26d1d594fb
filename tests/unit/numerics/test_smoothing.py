"""Factors and offsets against the equations, channel by channel."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gpusq_deploy.numerics.smoothing import balanced, cautious, one_sided

Floats = npt.NDArray[np.float32]


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


LOW, HIGH, COLUMNS = floats(-1, -8, 2, -0.5), floats(3, -2, 10, 0.25), floats(0.1, 0.4, 0.02, 1.5)


@pytest.mark.parametrize("centre", [True, False])
def test_balanced_factors_are_those_of_a_slow_loop(centre: bool) -> None:
    found = balanced(LOW, HIGH, COLUMNS, centre=centre)
    raw: list[float] = []
    for low, high, column in zip(LOW.tolist(), HIGH.tolist(), COLUMNS.tolist(), strict=True):
        reach = (high - low) / 2 if centre else max(abs(low), abs(high))
        raw.append(reach**0.6 / column**0.4)
    mean = math.prod(raw) ** (1 / len(raw))
    np.testing.assert_allclose(found.factor, [value / mean for value in raw], rtol=1e-6)
    np.testing.assert_allclose(found.offset, [1, -5, 6, -0.125] if centre else [0] * 4)
    assert found.amax is None
    assert found.factor.dtype == np.float32
    assert found.offset.dtype == np.float32


@pytest.mark.parametrize("centre", [True, False])
def test_cautious_factors_are_those_of_a_slow_loop(centre: bool) -> None:
    found = cautious(LOW, HIGH, COLUMNS, centre=centre)
    ends = list(zip(LOW.tolist(), HIGH.tolist(), strict=True))
    reach = [(high - low) / 2 if centre else max(abs(low), abs(high)) for low, high in ends]
    assert sum(value < max(reach) / 5 for value in reach) == 1  # one channel counts as more than it reaches
    raw = [math.sqrt(max(r, max(reach) / 5) / w) for r, w in zip(reach, COLUMNS.tolist(), strict=True)]
    mean = math.prod(raw) ** (1 / len(raw))
    np.testing.assert_allclose(found.factor, [value / mean for value in raw], rtol=1e-6)
    np.testing.assert_allclose(found.offset, [1, -5, 6, -0.125] if centre else [0] * 4)
    assert found.amax is None


def test_balanced_evens_out_what_the_channels_reach() -> None:
    scale = np.geomspace(0.1, 100, 12).astype(np.float32)
    found = balanced(-scale, scale, np.ones(12, np.float32), centre=True)
    reach = scale / found.factor
    assert reach.max() / reach.min() == pytest.approx(1000**0.4, rel=1e-5)
    assert np.exp(np.log(found.factor.astype(np.float64)).mean()) == pytest.approx(1, rel=1e-6)


def test_a_channel_or_column_that_is_never_used_does_not_rule_the_others() -> None:
    """It counts as a ten-thousandth of the largest."""
    found = balanced(floats(-1, 0), floats(1, 0), floats(0, 2), centre=True)
    assert found.factor[0] / found.factor[1] == pytest.approx((1 / 1e-4) ** 0.6 / (1e-4) ** 0.4, rel=1e-4)
    for nothing in (balanced(floats(0, 0), floats(0, 0), floats(0, 0), centre=centre) for centre in (True, False)):
        np.testing.assert_array_equal(nothing.factor, [1, 1])
        np.testing.assert_array_equal(nothing.offset, [0, 0])


@pytest.mark.parametrize("headroom", [0.0, 0.15])
@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_one_sided_is_that_of_a_slow_loop(stored: npt.DTypeLike, headroom: float) -> None:
    low, high = [-0.17, -0.17, -0.1, 0.0], [8.0, 2.0, 0.5, 0.0]
    found = one_sided(floats(*low), floats(*high), headroom=headroom, centre=True, stored=stored)
    factor = [math.sqrt(max(value, 8 / 5) / 8) for value in high]
    top = (1 + headroom) * max(h / s for h, s in zip(high, factor, strict=True))
    bottom = min(least / s for least, s in zip(low, factor, strict=True))
    step = float(np.asarray((top - bottom) / 2 / 127).astype(stored))
    offset = step * round((top + bottom) / (2 * step))
    np.testing.assert_allclose(found.factor, factor, rtol=1e-6)
    np.testing.assert_allclose(found.offset, [s * offset for s in factor], rtol=1e-6)
    assert found.amax == pytest.approx((top - bottom) / 2, rel=1e-6)
    assert round((top + bottom) / (2 * step)) > 100  # nearly all of the range lies above 0


@pytest.mark.parametrize(("far", "least"), [(2.0, 2.0 / 5), (40.0, 2.0 / 5), (1.5, 1.5 / 5)])
def test_a_channel_far_beyond_the_others_leaves_them_steps(far: float, least: float) -> None:
    """No channel counts as smaller than a fifth of twice the 99th percentile, here 1; or of the largest, if less."""
    high = [1.0] * 990 + [0.1] * 9 + [far]
    found = one_sided(np.zeros(1000, np.float32), floats(*high), headroom=0.0, centre=False, stored=np.float32)
    np.testing.assert_allclose(found.factor, [math.sqrt(max(value, least) / far) for value in high], rtol=1e-5)


def test_without_an_offset_the_range_holds_both_ends() -> None:
    found = one_sided(floats(-0.2, 0), floats(4, 1), headroom=0.5, centre=False, stored=np.float32)
    assert not found.offset.any()
    assert found.amax == pytest.approx(6)
    other = one_sided(floats(-9, 0), floats(4, 1), headroom=0.0, centre=False, stored=np.float32)
    assert other.amax == pytest.approx(9)


def test_zero_keeps_a_code_where_every_value_seen_was_positive() -> None:
    found = one_sided(floats(90, 95), floats(100, 100), headroom=0.0, centre=True, stored=np.float32)
    assert found.amax == pytest.approx(50)
    np.testing.assert_allclose(found.offset, [50, 50], atol=0.6 * 50 / 127)


@pytest.mark.parametrize("centre", [True, False])
def test_an_activation_that_is_always_zero_is_left_alone(centre: bool) -> None:
    found = one_sided(floats(0, 0), floats(0, 0), headroom=0.15, centre=centre, stored=np.float16)
    assert found.amax == 0
    assert not found.offset.any()
    assert np.isfinite(found.factor).all()
    assert (found.factor > 0).all()


def test_a_range_that_the_stored_type_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="overflows float16"):
        one_sided(floats(-0.17), floats(2e7), headroom=0.0, centre=True, stored=np.float16)
