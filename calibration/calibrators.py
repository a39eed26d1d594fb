"""From a histogram of magnitudes to a symmetric range |x| <= amax. Pure; docs/numerics.md has the equations.

Within a bin the values count as evenly spread; a bin is at most one quantisation step wide wherever it isn't clipped
(x/128 against amax/127).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gpusq_deploy.artifacts import Calibrator, CalibratorName
from gpusq_deploy.calibration.histogram import Histogram, Numbers
from gpusq_deploy.numerics import INT8_MAX

# The search of `mse`: 32 ranges to the octave, eight octaves down from the largest magnitude.
_PER_OCTAVE = 32
_OCTAVES = 8
# The entropy method's own numbers: TensorRT's histogram of 2048 bins, and INT8's 128 magnitudes.
_LINEAR_BINS = 2048
_LEVELS = 128
# Spreading one count over the linear bins leaves at least 1/16 in each; less is rounding.
_EMPTY = 1e-3


def range_of(histogram: Histogram, calibrator: Calibrator) -> float:
    """The range that a calibrator chooses: in (0, largest magnitude], or 0 where every value is zero.

    For `output-error` each value must have been counted with its channel's weight: see `columns.column_weights`.
    """
    if histogram.amax == 0 or not histogram.counts.any():
        return histogram.amax
    if calibrator.name == "percentile":
        return percentile(histogram, calibrator.share)
    return _METHODS[calibrator.name](histogram)


def largest(histogram: Histogram) -> float:
    """The largest magnitude: nothing is clipped."""
    return histogram.amax


def percentile(histogram: Histogram, share: float) -> float:
    """The smallest range that holds `share` percent of the magnitudes, linear within a bin."""
    low, high, counts = histogram.pieces()
    wanted = float(counts.sum()) * share / 100
    reached = np.cumsum(counts)
    index = min(int(np.searchsorted(reached, wanted)), len(counts) - 1)
    before = reached[index] - counts[index]
    return float(low[index] + (high[index] - low[index]) * min((wanted - before) / counts[index], 1.0))


def least_squares(histogram: Histogram) -> float:
    """The range whose INT8 codes have the smallest expected squared error; of equals the widest."""
    candidates = [histogram.amax * 2 ** (-step / _PER_OCTAVE) for step in range(_PER_OCTAVE * _OCTAVES + 1)]
    return min(candidates, key=lambda candidate: squared_error(histogram, candidate))


def squared_error(histogram: Histogram, amax: float) -> float:
    """Sum of the expected squared errors of all values, rounded or clipped to the range `amax`.

    With s = amax/127 and n = round(x/s), the integral of (x - n·s)² from 0 to x is n·s³/12 + (x - n·s)³/3; beyond
    amax that of (x - amax)² is (x - amax)³/3. Their mean over a bin is the difference at its edges over its width.
    """
    low, high, counts = histogram.pieces()
    width = high - low
    narrow = width <= 1e-9 * high
    middle = (low + high) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (_integral(high, amax) - _integral(low, amax)) / width
    return float(np.sum(np.where(narrow, _error_at(middle, amax), spread) * counts))


def least_divergence(histogram: Histogram) -> float:
    """The range whose 128 levels keep the distribution best, by Kullback-Leibler divergence.

    Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017. What lies beyond a candidate joins its last bin in the
    reference, and not in what is quantised.
    """
    linear = _linear_counts(histogram)
    total = float(linear.sum())
    divergences = [_divergence(linear[:size], total) for size in range(_LEVELS, _LINEAR_BINS + 1)]
    return (int(np.argmin(divergences)) + _LEVELS) * histogram.amax / _LINEAR_BINS


_METHODS: dict[CalibratorName, Callable[[Histogram], float]] = {
    "amax": largest,
    "entropy": least_divergence,
    "mse": least_squares,
    "output-error": least_squares,
}


def _error_at(values: Numbers, amax: float) -> Numbers:
    step = amax / INT8_MAX
    rounded = values - step * np.rint(values / step)
    return np.where(values > amax, values - amax, rounded) ** 2


def _integral(values: Numbers, amax: float) -> Numbers:
    """Integral of the squared error from 0 to each value."""
    step = amax / INT8_MAX
    inside = np.minimum(values, amax)
    codes = np.rint(inside / step)
    return codes * step**3 / 12 + (inside - codes * step) ** 3 / 3 + np.maximum(values - amax, 0) ** 3 / 3


def _linear_counts(histogram: Histogram) -> Numbers:
    """The counts over 2048 equal bins from 0 to the largest magnitude."""
    low, high, counts = histogram.pieces()
    # Edges of neighbouring bins coincide, and so do their sums; a bin without width is a step.
    places = np.stack([low, high], axis=1).reshape(-1)
    reached = np.cumsum(counts)
    sums = np.stack([reached - counts, reached], axis=1).reshape(-1)
    linear_edges = np.linspace(0, histogram.amax, _LINEAR_BINS + 1)
    linear = np.diff(np.interp(linear_edges, places, sums, left=0.0))
    return np.where(linear < _EMPTY, 0.0, linear)


def _divergence(kept: Numbers, total: float) -> float:
    """Divergence of `kept`, in 128 levels, from itself with everything beyond it in its last bin."""
    held = kept > 0
    reference = kept.copy()
    reference[-1] += total - kept.sum()
    levels = np.arange(len(kept)) * _LEVELS // len(kept)
    sums = np.bincount(levels, weights=kept, minlength=_LEVELS)
    members = np.bincount(levels, weights=held, minlength=_LEVELS)
    quantised = np.where(held, (sums / np.maximum(members, 1))[levels], 0.0)
    used = reference > _EMPTY
    if not quantised[used].all():
        return math.inf
    p, q = reference[used] / reference[used].sum(), quantised[used] / quantised.sum()
    return float(np.sum(p * np.log(p / q)))
