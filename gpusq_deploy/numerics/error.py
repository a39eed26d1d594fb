"""How far two outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Float32 keeps seven digits, and a batch of another size may be summed in another order.
_SAME = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorSums:
    """What is kept of two outputs instead of the outputs: four sums for each sample, float64 [N].

    `signal` = Σ ref², `got` = Σ got², `product` = Σ ref·got, `noise` = Σ (ref - got)².
    """

    signal: npt.NDArray[np.float64]
    got: npt.NDArray[np.float64]
    product: npt.NDArray[np.float64]
    noise: npt.NDArray[np.float64]

    def sqnr_db(self) -> float:
        """SQNR of all samples seen as one; see `sqnr_db`."""
        return _decibels(float(self.signal.sum()), float(self.noise.sum()))

    def median_sqnr_db(self) -> float:
        """Median over the samples of each one's own SQNR: one or two samples can decide the pooled figure, not this."""
        ordered = self._ordered_db()
        middle = len(ordered) // 2
        # Not statistics.median: the mean of two infinities of one sign is fine, of two signs it is NaN.
        return ordered[middle] if len(ordered) % 2 else _between(ordered[middle - 1], ordered[middle])

    def extremes_db(self) -> tuple[float, float]:
        """The lowest and the highest of the samples' own SQNR."""
        ordered = self._ordered_db()
        return ordered[0], ordered[-1]

    def _ordered_db(self) -> list[float]:
        return sorted(_decibels(*pair) for pair in zip(self.signal.tolist(), self.noise.tolist(), strict=True))

    def cosine(self) -> float:
        """Cosine of all samples seen as one long vector; see `cosine`."""
        length = math.sqrt(float(self.signal.sum()) * float(self.got.sum()))
        return float(self.product.sum()) / length if length else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How far the answers to several samples are from the answer to the first.

    `first` is that answer, float64; `largest` = max |answer| and `deviation` = max |answer - first|, over all samples.
    """

    first: npt.NDArray[np.float64]
    samples: int
    largest: float
    deviation: float

    @property
    def constant(self) -> bool:
        """True where every sample has the same answer, to float32's rounding; of one sample, where it is all zero."""
        return self.deviation <= _SAME * self.largest and (self.samples > 1 or self.largest == 0)


def spread_of(answers: Array, before: Spread | None = None) -> Spread:
    """The spread of answers [N, ...], N at least 1, together with those that were seen before."""
    values = answers.astype(np.float64)
    first = values[0].copy() if before is None else before.first
    largest, deviation = (float(np.abs(each).max(initial=0.0)) for each in (values, values - first))
    return Spread(
        first=first,
        samples=len(values) + (0 if before is None else before.samples),
        largest=max(largest, 0.0 if before is None else before.largest),
        deviation=max(deviation, 0.0 if before is None else before.deviation),
    )


def error_sums(reference: Array, got: Array) -> ErrorSums:
    """The sums of two outputs [N, ...] of one shape."""
    ref = reference.astype(np.float64).reshape(len(reference), -1)
    other = got.astype(np.float64).reshape(len(got), -1)
    return ErrorSums(
        signal=_sums(ref * ref), got=_sums(other * other), product=_sums(ref * other), noise=_sums((ref - other) ** 2)
    )


def joined(parts: Sequence[ErrorSums]) -> ErrorSums:
    """The sums of all the parts' samples, in order."""
    return ErrorSums(
        signal=np.concatenate([part.signal for part in parts]),
        got=np.concatenate([part.got for part in parts]),
        product=np.concatenate([part.product for part in parts]),
        noise=np.concatenate([part.noise for part in parts]),
    )


def sqnr_db(reference: Array, got: Array) -> float:
    """Signal to quantisation noise: 10·log10(Σ ref² / Σ (ref - got)²), in dB; infinite where they are equal."""
    ref = reference.astype(np.float64)
    noise = float(np.sum((ref - got.astype(np.float64)) ** 2))
    signal = float(np.sum(ref**2))
    return _decibels(signal, noise)


def cosine(reference: Array, got: Array) -> float:
    """Cosine between the two, each seen as one long vector; 0 where one of them is all zero."""
    a = reference.astype(np.float64).ravel()
    b = got.astype(np.float64).ravel()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else 0.0


def top1_agreement(reference: Array, got: Array) -> float:
    """Share of samples [N, classes] whose largest logit is the same class."""
    same = np.asarray(np.argmax(reference, axis=-1) == np.argmax(got, axis=-1), dtype=np.float64)
    return float(same.mean())


def equal_share(reference: Array, got: Array) -> float:
    """Share of the elements that are equal, 0…1: how integers agree; 1 of two outputs without elements."""
    return int(np.count_nonzero(np.equal(reference, got))) / reference.size if reference.size else 1.0


def is_floating(array: Array) -> bool:
    """Whether an output is of floats, which have an SQNR; integers and booleans agree or don't."""
    return not np.issubdtype(array.dtype, np.integer) and array.dtype != np.bool_


def _sums(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    sums: npt.NDArray[np.float64] = values.sum(axis=1)
    return sums


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def _between(low: float, high: float) -> float:
    return low if math.isinf(low) else (low + high) / 2
