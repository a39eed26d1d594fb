"""Counts of magnitudes over fixed logarithmic bins.

A float32 is a sign, eight bits of exponent and 23 of mantissa. The exponent and the top seven bits of the mantissa,
read as one integer, number bins of equal relative width, 128 to the octave, whose edges are float32 numbers:

    bin of x = (bits of |x|) >> 16

So the bin of a value is exact, and the same for every tensor, batch and process: counts of any two parts of the data
add up to the counts of the whole, to the last one. Kept are 2⁻²⁴ to 2¹⁶; one bin below and one above hold the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PER_OCTAVE = 128
LOWEST, HIGHEST = -24, 16
BINS = (HIGHEST - LOWEST) * PER_OCTAVE + 2
_BIAS = 127
_FIRST = (_BIAS + LOWEST) * PER_OCTAVE
_LAST = (_BIAS + HIGHEST) * PER_OCTAVE
_INFINITE = 255 * PER_OCTAVE
_ALL = 256 * PER_OCTAVE
# A sum of whole numbers is exact in float64 up to here.
_EXACT = 2**53

Counts = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


def edges() -> Numbers:
    """Edges of the bins, float64 [BINS + 1]: 0, 2⁻²⁴, …, 2¹⁶, infinity. Bin i holds edges[i] <= |x| < edges[i + 1]."""
    steps = np.arange((HIGHEST - LOWEST) * PER_OCTAVE + 1)
    inner = np.ldexp(1 + (steps % PER_OCTAVE) / PER_OCTAVE, LOWEST + steps // PER_OCTAVE)
    return np.concatenate([[0.0], inner, [np.inf]])


def counts_of(values: npt.NDArray[np.float32], weights: Counts | None = None) -> Counts:
    """How many of the values lie in each bin, int64 [BINS].

    Args:
        values: float32, any shape.
        weights: What each value counts for, whole numbers that broadcast to `values`; None counts each once.

    Raises:
        ValueError: A value is NaN or infinite, or the weights are too large to add up exactly.
    """
    bins = (np.ascontiguousarray(values).view(np.uint32) >> np.uint32(16)) & np.uint32(_ALL - 1)
    flat = bins.reshape(-1)
    if weights is None:
        every = np.bincount(flat, minlength=_ALL)
    else:
        if values.size and int(weights.max()) * values.size >= _EXACT:
            raise ValueError("the weights are too large to add up exactly")
        each = np.broadcast_to(weights, values.shape).reshape(-1)
        every = np.bincount(flat, weights=each, minlength=_ALL).astype(np.int64)
    # Counted, not weighed: a value whose weight is zero must be finite too.
    if flat.size and int(flat.max()) >= _INFINITE:
        raise ValueError("a value is NaN or infinite")
    below, above = every[:_FIRST].sum(), every[_LAST:].sum()
    return np.concatenate([[below], every[_FIRST:_LAST], [above]]).astype(np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Histogram:
    """Counts over the fixed bins [BINS], and the exact largest magnitude."""

    counts: Counts
    amax: float

    def pieces(self) -> tuple[Numbers, Numbers, Numbers]:
        """Bins that hold something: lower edges, upper edges, counts. No edge lies beyond the largest magnitude."""
        held = np.flatnonzero(self.counts)
        bounds = edges()
        low = np.minimum(bounds[held], self.amax)
        high = np.minimum(bounds[held + 1], self.amax)
        return low, high, self.counts[held].astype(np.float64)
