"""Statistics of latencies: pure functions on samples in milliseconds.

Samples come as a float64 matrix [repeats, iterations], or [rebuilds, repeats, iterations] where the engine was built
several times. Iterations of one repeat share a process, its memory layout and the state of the machine, so they are not
independent of each other; repeats are, and of repeats of several builds, the builds. Whatever states a confidence
therefore treats the repeat or the build as its unit.

By hand, since scipy is 112 MB on a device and its exact Mann-Whitney test ignores ties; tests compare with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float64]

# MLPerf's early stopping needs 64 queries before it estimates a p90 (mlcommons/inference#1629). At 459 samples
# 0.99^459 < 1 %: only then does the largest sample lie above the true p99 with 99 % confidence.
SAMPLE_FLOORS = {90: 64, 99: 459}
UNSTABLE_ABOVE = 0.025  # trtexec warns at the same coefficient of variation
CONFIDENCE = 0.95
RESAMPLES = 4000
EXACT_UP_TO = 40  # values in both groups together; beyond, the normal approximation is good to three digits
_CHUNK = 1 << 20  # resampled values held at once

_NORMAL = NormalDist()


class Tail(NamedTuple):
    """A percentile in milliseconds, or None and the reason why it isn't given."""

    value: float | None
    reason: str | None


class Interval(NamedTuple):
    """Lower and upper end of a confidence interval."""

    lower: float
    upper: float


def median(samples: Samples) -> float:
    """Median of all samples, any shape: the mean of the two middle ones where their number is even."""
    return float(np.median(samples))


def throughput(batch: int, samples: Samples) -> float:
    """Inferences per second at the median latency: 1000 · batch / median(ms)."""
    return 1000.0 * batch / median(samples)


def percentile(samples: Samples, percent: int) -> float:
    """Nearest-rank percentile: the smallest sample that `percent` of all samples do not exceed.

    No interpolation: between two samples of a tail nothing was measured.

    Args:
        samples: Any shape, not empty.
        percent: 1…100.
    """
    ordered = np.sort(samples, axis=None)
    rank = -(-percent * ordered.size // 100)
    return float(ordered[rank - 1])


def tail(samples: Samples, percent: int) -> Tail:
    """A percentile of the tail, only where there are enough samples to have one; see `SAMPLE_FLOORS`."""
    floor = SAMPLE_FLOORS[percent]
    if samples.size < floor:
        return Tail(None, f"p{percent} needs {floor} samples, there are {samples.size}")
    return Tail(percentile(samples, percent), None)


def coefficient_of_variation(samples: Samples) -> float:
    """Standard deviation (n - 1) over mean, of all samples; 0 for a single one."""
    if samples.size < 2:
        return 0.0
    return float(np.std(samples, ddof=1) / np.mean(samples))


def instability(samples: Samples) -> str | None:
    """The warning that latencies vary too much, or None."""
    variation = coefficient_of_variation(samples)
    if variation <= UNSTABLE_ABOVE:
        return None
    return (
        f"unstable: the standard deviation is {variation:.1%} of the mean, above {UNSTABLE_ABOVE:.1%}; "
        "lock the clocks, stop other work, or take more repeats"
    )


def unit_medians(samples: Samples) -> Samples:
    """Median of each independent unit, all its samples together: of each repeat, or build where there are several."""
    medians: Samples = np.median(samples.reshape(samples.shape[0], -1), axis=1)
    return medians


def ratio_interval(base: Samples, head: Samples, *, percent: int = 50, seed: int = 0) -> Interval:
    """95 % confidence interval of median(head) / median(base), or of a percentile's ratio, by hierarchical bootstrap.

    Every resample draws rebuilds with replacement, then processes (repeats) within each drawn rebuild, then iterations
    within each drawn process. The plain percentile interval is too narrow for few units; its levels are therefore
    widened to those of Hesterberg's expanded percentile interval, What Teachers Should Know about the Bootstrap,
    arXiv 1411.5279:

        Φ⁻¹(level) = ±√(k / (k - 1)) · t(97.5 %; d)        k = min(units),  d = units of base + of head - 2

    Units are rebuilds where both sides have several, else processes.

    Args:
        base: [processes, iterations] or [rebuilds, processes, iterations] in ms, at least two units.
        head: The same; its shape may differ.
        percent: 50 is the median; another is a nearest-rank percentile, see `percentile`.
        seed: The result is a function of the samples and the seed.

    Raises:
        ValueError: A side has fewer than two units.
    """
    counts = _units(base, head)
    fewest = min(counts)
    if fewest < 2:
        raise ValueError("a confidence interval needs at least two repeats on each side")
    rng = np.random.default_rng(seed)
    ratios = _resampled(head, percent, rng) / _resampled(base, percent, rng)
    level = _expanded_level(fewest, sum(counts) - 2)
    lower, upper = np.quantile(ratios, [level, 1 - level])
    return Interval(float(lower), float(upper))


def false_discovery_adjusted(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values of tests that are decided together: below q, a share of at most q of those called is false on average.

    Of m sorted ascending, the adjusted i-th is the least of p_j · m / j over j ≥ i, at most 1 (Benjamini, Hochberg,
    Journal of the Royal Statistical Society B 57, 1995): right for independent tests and for positively dependent ones,
    such as batch sizes that were measured on one machine.
    """
    if not p_values:
        return ()
    values = np.array(p_values, dtype=np.float64)
    order = np.argsort(values)
    scaled = values[order] * values.size / np.arange(1, values.size + 1)
    lowest = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    adjusted = np.empty_like(values)
    adjusted[order] = lowest
    return tuple(float(value) for value in adjusted)


def mann_whitney(larger: Samples, smaller: Samples) -> float:
    """One-sided p-value of "`larger` tends to be larger", by the Mann-Whitney U test with mid-ranks.

    Exact up to `EXACT_UP_TO` values, ties included: the share of all splits of the pooled ranks whose rank sum is at
    least the observed one. Beyond, U is compared with a normal of mean mn/2 and variance

        mn/12 · ((N + 1) - Σ(t³ - t) / (N(N - 1)))        t: sizes of the groups of ties, N = m + n

    with a continuity correction of one half. Source: Hollander, Wolfe, Chicken, Nonparametric Statistical Methods,
    3rd edition, section 4.1.

    Args:
        larger: [m], independent values such as medians of repeats.
        smaller: [n].

    Raises:
        ValueError: A side is empty.
    """
    if not larger.size or not smaller.size:
        raise ValueError("the Mann-Whitney test needs values on both sides")
    doubled = _doubled_ranks(np.concatenate([larger.ravel(), smaller.ravel()]))
    if doubled.size <= EXACT_UP_TO:
        return _exact_p(doubled, larger.size)
    return _normal_p(doubled, larger.size)


def _units(base: Samples, head: Samples) -> tuple[int, int]:
    """How many independent units each side has: rebuilds where both have several, else processes."""
    rebuilds = [1 if side.ndim == 2 else side.shape[0] for side in (base, head)]
    if min(rebuilds) > 1:
        return rebuilds[0], rebuilds[1]
    return math.prod(base.shape[:-1]), math.prod(head.shape[:-1])


def _resampled(samples: Samples, percent: int, rng: np.random.Generator) -> Samples:
    """The median or percentile of every resample: [RESAMPLES]."""
    step = max(1, _CHUNK // samples.size)
    pieces: list[Samples] = []
    for start in range(0, RESAMPLES, step):
        drawn = draw_resamples(samples, min(step, RESAMPLES - start), rng)
        if percent == 50:
            pieces.append(np.median(drawn, axis=1))
        else:
            rank = -(-percent * drawn.shape[1] // 100)
            pieces.append(np.partition(drawn, rank - 1, axis=1)[:, rank - 1])
    return np.concatenate(pieces)


def draw_resamples(samples: Samples, size: int, rng: np.random.Generator) -> Samples:
    """Resamples, level by level with replacement: [size, all samples]."""
    *_, repeats, iterations = samples.shape
    if samples.ndim == 2:
        rows = rng.integers(repeats, size=(size, repeats, 1))
        columns = rng.integers(iterations, size=(size, repeats, iterations))
        return samples[rows, columns].reshape(size, -1)
    rebuilds = samples.shape[0]
    builds = rng.integers(rebuilds, size=(size, rebuilds, 1, 1))
    rows = rng.integers(repeats, size=(size, rebuilds, repeats, 1))
    columns = rng.integers(iterations, size=(size, rebuilds, repeats, iterations))
    return samples[builds, rows, columns].reshape(size, -1)


def _expanded_level(repeats: int, freedom: int) -> float:
    quantile = student_t_quantile((1 + CONFIDENCE) / 2, freedom)
    return _NORMAL.cdf(-math.sqrt(repeats / (repeats - 1)) * quantile)


def student_t_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t: four terms of the expansion in Abramowitz and Stegun, 26.7.5; 1e-3 from 5 degrees on."""
    x = _NORMAL.inv_cdf(share)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))


def _doubled_ranks(values: Samples) -> npt.NDArray[np.int64]:
    # Twice the mid-rank is an integer: the number of values below plus the number not above, plus one.
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    not_above = np.searchsorted(ordered, values, side="right")
    doubled: npt.NDArray[np.int64] = below.astype(np.int64) + not_above + 1
    return doubled


def _exact_p(doubled: npt.NDArray[np.int64], first: int) -> float:
    # ways[k, s]: subsets of k ranks with (doubled) sum s, added rank by rank. Counts stay below 2^53.
    observed = int(doubled[:first].sum())
    total = int(doubled.sum())
    ways = np.zeros((first + 1, total + 1))
    ways[0, 0] = 1
    for rank in doubled.tolist():
        ways[1:, rank:] += ways[:-1, : total + 1 - rank]
    return float(ways[first, observed:].sum() / ways[first].sum())


def _normal_p(doubled: npt.NDArray[np.int64], first: int) -> float:
    total = doubled.size
    pairs = first * (total - first)
    u = float(doubled[:first].sum()) / 2 - first * (first + 1) / 2
    _, ties = np.unique(doubled, return_counts=True)
    correction = float(np.sum(ties.astype(np.float64) ** 3 - ties)) / (total * (total - 1))
    deviation = math.sqrt(pairs / 12 * (total + 1 - correction))
    if deviation == 0:
        return 1.0
    return 1 - _NORMAL.cdf((u - pairs / 2 - 0.5) / deviation)
