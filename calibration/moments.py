"""Per-channel ranges, means and second moments of activations, added up as they stream by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Rows that wait for their second moments: one large product is faster than many small ones.
_PENDING = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelMoments:
    """Of one activation [..., K] over all samples and positions.

    Attributes:
        low: Smallest value of each channel [K]; high: the largest.
        mean: [K], float64; variance: [K], float64.
        covariance: Σ (x - mean)(x - mean)ᵀ / n [K, K]; None where it wasn't wanted.
    """

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float64]
    variance: npt.NDArray[np.float64]
    covariance: npt.NDArray[np.float32] | None


class ChannelMomentSums:
    """Sums about the first rows' mean, so that a large mean doesn't drown the variance.

    State: a few numbers for each channel; with `squares`, K² and 1,024 rows.
    """

    def __init__(self, first: npt.NDArray[np.float32], *, squares: bool) -> None:
        """Start with the width and the mean of `first` [n, K], which isn't added yet."""
        width = first.shape[1]
        self._about = first.mean(axis=0)
        self._low = np.full(width, np.inf, np.float32)
        self._high = np.full(width, -np.inf, np.float32)
        self._count = 0.0
        self._total = np.zeros(width)
        self._powers = np.zeros(width)
        self._squares: npt.NDArray[np.float32] | None = np.zeros((width, width), np.float32) if squares else None
        self._pending: list[npt.NDArray[np.float32]] = []

    def add(self, rows: npt.NDArray[np.float32], *, copies: int = 1) -> None:
        """Add rows [n, K] that stand `copies` times in what was run, and count once."""
        np.minimum(self._low, rows.min(axis=0), out=self._low)
        np.maximum(self._high, rows.max(axis=0), out=self._high)
        centred = rows - self._about
        self._count += len(rows) / copies
        self._total += centred.sum(axis=0, dtype=np.float64) / copies
        if self._squares is None:
            self._powers += np.square(centred).sum(axis=0, dtype=np.float64) / copies
        else:
            self._pending.append(centred / np.sqrt(np.float32(copies)) if copies > 1 else centred)
            if sum(map(len, self._pending)) >= _PENDING:
                self._flush(self._squares)

    def moments(self) -> ChannelMoments:
        """What was added so far; the sums can't be used afterwards."""
        shift = self._total / self._count
        covariance = self._squares
        if covariance is not None:
            self._flush(covariance)
            np.divide(covariance, np.float32(self._count), out=covariance)
            np.subtract(covariance, np.outer(shift, shift), out=covariance, casting="same_kind")
        return ChannelMoments(
            low=self._low,
            high=self._high,
            mean=self._about + shift,
            variance=self._variance(shift, covariance),
            covariance=covariance,
        )

    def _variance(
        self, shift: npt.NDArray[np.float64], covariance: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float64]:
        if covariance is not None:
            return covariance.diagonal().astype(np.float64)
        variance: npt.NDArray[np.float64] = np.maximum(self._powers / self._count - np.square(shift), 0)
        return variance

    def _flush(self, squares: npt.NDArray[np.float32]) -> None:
        if self._pending:
            rows = np.concatenate(self._pending)
            self._pending = []
            np.add(squares, rows.T @ rows, out=squares)
