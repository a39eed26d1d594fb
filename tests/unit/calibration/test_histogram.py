"""Bins against a loop over the values with the edges' definition, and their borders."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gpusq_deploy.calibration.histogram import BINS, HIGHEST, LOWEST, PER_OCTAVE, Histogram, counts_of, edges


def bin_by_hand(value: float) -> int:
    """From the definition: 128 bins of equal width in each octave."""
    magnitude = abs(value)
    if magnitude < 2.0**LOWEST:
        return 0
    if magnitude >= 2.0**HIGHEST:
        return BINS - 1
    octave = math.floor(math.log2(magnitude))
    return 1 + (octave - LOWEST) * PER_OCTAVE + math.floor((magnitude / 2.0**octave - 1) * PER_OCTAVE)


def counts_by_hand(values: Any, weights: Any = None) -> list[int]:
    counts = [0] * BINS
    each: Any = np.broadcast_to(1 if weights is None else weights, values.shape)
    for value, weight in zip(values.ravel().tolist(), each.ravel().tolist(), strict=True):
        counts[bin_by_hand(value)] += weight
    return counts


def spread(count: int, seed: int) -> Any:
    """Both signs, thirty orders of magnitude."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(count) * 10.0 ** random.uniform(-15, 15, count)).astype(np.float32)


def test_counts_are_those_of_a_loop() -> None:
    values = spread(4000, 1).reshape(4, 10, 100)
    assert counts_of(values).tolist() == counts_by_hand(values)


def test_weighted_counts_are_those_of_a_loop() -> None:
    values = spread(4000, 2).reshape(40, 100)
    weights = np.random.default_rng(3).integers(0, 2**20, 100)
    assert counts_of(values, weights).tolist() == counts_by_hand(values, weights)


def test_weights_of_channels_before_others_broadcast() -> None:
    values = spread(600, 4).reshape(2, 3, 10, 10)
    weights = np.array([1, 5, 1000])[:, None, None]
    assert counts_of(values, weights).tolist() == counts_by_hand(values, weights)


def test_every_edge_begins_its_bin_and_the_number_before_ends_the_last_one() -> None:
    inner = edges()[1:-1].astype(np.float32)
    assert (inner == edges()[1:-1]).all()
    assert np.flatnonzero(counts_of(inner)).tolist() == list(range(1, BINS))
    assert np.flatnonzero(counts_of(np.nextafter(inner, np.float32(0)))).tolist() == list(range(BINS - 1))


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, -1e-45, 5.9e-8])
def test_what_is_too_small_lies_in_the_first_bin(value: float) -> None:
    assert np.flatnonzero(counts_of(np.array([value], np.float32))).tolist() == [0]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight", [None, np.array([0])])
def test_what_is_not_finite_is_refused(value: float, weight: Any) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        counts_of(np.array([1, value, 2], np.float32), weight)


def test_weights_that_would_lose_a_count_are_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        counts_of(np.ones(8, np.float32), np.array([2**51]))


def test_values_that_are_not_contiguous_are_counted_all_the_same() -> None:
    values = spread(1200, 5).reshape(30, 40)
    assert counts_of(values.T[::2]).tolist() == counts_by_hand(values.T[::2])


def test_pieces_hold_every_count_and_end_at_the_largest_magnitude() -> None:
    values = spread(500, 6)
    amax = float(np.abs(values).max())
    low, high, counts = Histogram(counts=counts_of(values), amax=amax).pieces()
    assert counts.sum() == 500
    assert high.max() == amax
    assert (low <= high).all()
    for value in np.abs(values).tolist():
        assert ((low <= value) & (value <= high)).any()
