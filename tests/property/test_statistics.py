"""Statistics against slow, obvious references and against scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from gpusq_deploy.benchmarks import statistics

# importorskip hands back Any: scipy ships no types. It is always there, as scikit-learn's dependency.
stats = pytest.importorskip("scipy.stats")

Array = NDArray[np.float64]
untimed = settings(deadline=None)  # the machine may be busy
latencies = st.floats(1e-3, 1e4)
few_values = st.integers(1, 4).map(float)
vectors = hnp.arrays(np.float64, st.integers(1, 120), elements=latencies)


@untimed
@given(vectors, st.integers(1, 100))
def test_a_percentile_is_the_smallest_sample_that_enough_samples_do_not_exceed(samples: Array, percent: int) -> None:
    values = samples.tolist()
    enough = [x for x in values if sum(y <= x for y in values) * 100 >= percent * len(values)]
    assert statistics.percentile(samples, percent) == min(enough)


@untimed
@given(vectors)
def test_the_median_is_the_middle(samples: Array) -> None:
    ordered = sorted(samples.tolist())
    size = len(ordered)
    expected = (ordered[(size - 1) // 2] + ordered[size // 2]) / 2
    assert statistics.median(samples) == pytest.approx(expected, rel=1e-12)


@untimed
@given(vectors, st.sampled_from([90, 99]))
def test_a_tail_is_given_exactly_from_its_floor_on(samples: Array, percent: int) -> None:
    tail = statistics.tail(samples, percent)
    assert (tail.value is None) == (samples.size < statistics.SAMPLE_FLOORS[percent])
    assert (tail.value is None) == (tail.reason is not None)


@untimed
@given(hnp.arrays(np.float64, st.integers(1, 4), elements=few_values), hnp.arrays(np.float64, 4, elements=few_values))
def test_exact_p_counts_the_splits_of_the_pool_even_with_ties(larger: Array, smaller: Array) -> None:
    def u(first: tuple[float, ...], second: tuple[float, ...]) -> float:
        return sum((a > b) + 0.5 * (a == b) for a in first for b in second)

    pool = [*larger.tolist(), *smaller.tolist()]
    observed = u(tuple(larger.tolist()), tuple(smaller.tolist()))
    hits = [
        u(tuple(pool[i] for i in chosen), tuple(pool[i] for i in range(len(pool)) if i not in chosen)) >= observed
        for chosen in itertools.combinations(range(len(pool)), len(larger))
    ]
    assert statistics.mann_whitney(larger, smaller) == pytest.approx(sum(hits) / len(hits), rel=1e-12)


@untimed
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32), st.floats(-2, 2))
def test_exact_p_equals_scipy(m: int, n: int, seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    larger, smaller = rng.standard_normal(m) + shift, rng.standard_normal(n)
    expected = stats.mannwhitneyu(larger, smaller, alternative="greater", method="exact").pvalue
    assert statistics.mann_whitney(larger, smaller) == pytest.approx(expected, rel=1e-9)


@untimed
@given(st.integers(21, 80), st.integers(21, 80), st.integers(0, 2**32), st.integers(1, 30))
def test_normal_p_equals_scipy_with_ties(m: int, n: int, seed: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    larger = rng.integers(0, distinct + 1, m).astype(np.float64)
    smaller = rng.integers(0, distinct + 1, n).astype(np.float64)
    expected = stats.mannwhitneyu(larger, smaller, alternative="greater", method="asymptotic").pvalue
    assert statistics.mann_whitney(larger, smaller) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@untimed
@given(st.integers(5, 400), st.floats(0.6, 0.99))
def test_student_t_equals_scipy(freedom: int, share: float) -> None:
    assert statistics.student_t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=2e-3)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 7), st.integers(1, 20), st.floats(0.25, 4))
def test_the_interval_is_deterministic_ordered_and_scales(seed: int, repeats: int, count: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    base, head = np.exp(rng.standard_normal((repeats, count))), np.exp(rng.standard_normal((repeats, count)))
    interval = statistics.ratio_interval(base, head)
    assert interval == statistics.ratio_interval(base, head)
    assert interval.lower <= interval.upper
    scaled = statistics.ratio_interval(base, head * factor)
    assert scaled == pytest.approx((interval.lower * factor, interval.upper * factor), rel=1e-9)


@untimed
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_adjusted_p_values_equal_scipy(values: list[float]) -> None:
    expected = stats.false_discovery_control(values, method="bh")
    assert statistics.false_discovery_adjusted(values) == pytest.approx(expected.tolist(), rel=1e-12, abs=1e-300)


def test_no_p_values_are_adjusted_to_none() -> None:
    assert statistics.false_discovery_adjusted([]) == ()


def _ratio_of_medians(base: Array, head: Array, axis: int) -> Array:
    ratio: Array = np.median(head, axis=axis) / np.median(base, axis=axis)
    return ratio


@pytest.mark.parametrize("shape", [(12, 1), (12, 1, 1)])
def test_the_interval_of_single_samples_equals_scipy_at_the_widened_level(shape: tuple[int, ...]) -> None:
    """With one sample a process (or build) every level but the first draws nothing: a plain bootstrap of the ratio."""
    rng = np.random.default_rng(5)
    base, head = 10 * np.exp(0.05 * rng.standard_normal(12)), 11 * np.exp(0.05 * rng.standard_normal(12))
    quantile = stats.t.ppf(0.975, 22) * np.sqrt(12 / 11)
    expected = stats.bootstrap(
        (base, head),
        _ratio_of_medians,
        confidence_level=2 * stats.norm.cdf(quantile) - 1,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = statistics.ratio_interval(base.reshape(shape), head.reshape(shape))
    assert found == pytest.approx((expected.low, expected.high), rel=6e-3)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(2, 4), st.sampled_from([50, 90, 99]))
def test_resamples_draw_builds_then_processes_then_samples(
    seed: int, builds: int, processes: int, percent: int
) -> None:
    """A resample of builds that are constant within, and far apart, shows which were drawn: none but whole values."""
    rng = np.random.default_rng(seed)
    levels: Array = np.power(10.0, np.arange(builds, dtype=np.float64))
    samples: Array = np.repeat(levels, processes * 5).reshape(builds, processes, 5)
    drawn = statistics.draw_resamples(samples, 8, rng)
    assert drawn.shape == (8, samples.size)
    assert set(np.unique(drawn)) <= set(levels)
    counts = np.stack([np.count_nonzero(drawn == level, axis=1) for level in levels])
    assert np.all(counts % (processes * 5) == 0)


def test_the_spread_between_builds_widens_the_interval() -> None:
    rng = np.random.default_rng(3)
    noise = 0.01 * rng.standard_normal((2, 4, 5, 30))
    builds = 0.05 * rng.standard_normal((2, 4, 1, 1))
    base, head = 10 * np.exp(noise + builds)
    nested = statistics.ratio_interval(base, head)
    flat = statistics.ratio_interval(base.reshape(20, 30), head.reshape(20, 30))
    assert nested.upper - nested.lower > 1.5 * (flat.upper - flat.lower)


def test_the_interval_of_p99_covers_the_true_ratio() -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(40):
        base = 10 * np.exp(0.01 * rng.standard_normal((6, 1)) + 0.05 * rng.standard_normal((6, 100)))
        head = 12 * np.exp(0.01 * rng.standard_normal((6, 1)) + 0.05 * rng.standard_normal((6, 100)))
        interval = statistics.ratio_interval(base, head, percent=99)
        covered += interval.lower <= 1.2 <= interval.upper
    assert covered >= 34
