"""How sure a difference is: the paired percentile bootstrap over images (Efron and Tibshirani 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# Of how often each image was drawn, float64 [images]: a model's measures, float64 [measures].
Statistic = Callable[[Array], Array]

_PERCENTILES = (2.5, 97.5)


class Interval(NamedTuple):
    """95 % of the differences lie between."""

    low: float
    high: float


def paired_intervals(
    statistics: Sequence[Statistic],
    images: int,
    *,
    draws: int,
    seed: int,
    heard: Callable[[int], None] = lambda _done: None,
) -> list[tuple[Interval, ...]]:
    """Of every statistic but the first: for each measure the interval of its difference from the first's.

    All statistics see the same draws of images, so that what is hard for all of them cancels.

    Args:
        statistics: One for each model.
        images: So many there are.
        draws: So often as many images are drawn, with replacement.
        seed: Of the draws.
        heard: Told how many draws are done.
    """
    if len(statistics) < 2:
        return []
    rng = np.random.default_rng(seed)
    differences: list[list[Array]] = [[] for _ in statistics[1:]]
    for done in range(draws):
        heard(done)
        weights = np.bincount(rng.integers(images, size=images), minlength=images).astype(np.float64)
        first, *others = (statistic(weights) for statistic in statistics)
        for found, other in zip(differences, others, strict=True):
            found.append(other - first)
    return [_intervals(np.stack(found)) for found in differences]


def _intervals(differences: Array) -> tuple[Interval, ...]:
    low, high = np.percentile(differences, _PERCENTILES, axis=0)
    return tuple(Interval(float(least), float(most)) for least, most in zip(low, high, strict=True))


def weighted_mean(values: Array) -> Statistic:
    """The mean of values [images, measures] over the drawn images; one that is NaN doesn't count."""
    counts = (~np.isnan(values)).astype(np.float64)
    filled = np.nan_to_num(values)

    def statistic(weights: Array) -> Array:
        total = weights @ counts
        means: Array = np.divide(weights @ filled, total, out=np.zeros_like(total), where=total > 0)
        return means

    return statistic
