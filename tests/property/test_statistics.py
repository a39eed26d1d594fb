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
