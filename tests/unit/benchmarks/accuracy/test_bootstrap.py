"""Paired intervals: against scipy's bootstrap, and against what is known of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpusq_deploy.benchmarks.accuracy.bootstrap import Array, paired_intervals, weighted_mean

stats: Any = pytest.importorskip("scipy.stats")


def right(share: float, images: int, seed: int) -> Array:
    return (np.random.default_rng(seed).random((images, 1)) < share).astype(np.float64)


def test_the_interval_is_scipys() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(0.8, 0.4, (400, 1))
    other = first + rng.normal(-0.05, 0.3, (400, 1))
    ((found,),) = paired_intervals([weighted_mean(first), weighted_mean(other)], 400, draws=4000, seed=0)
    wanted = stats.bootstrap(
        ((other - first)[:, 0],), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    # The standard error of either percentile is 0.0006; the interval is 0.06 wide, and an unpaired one 0.12.
    assert found.low == pytest.approx(wanted.low, abs=0.003)
    assert found.high == pytest.approx(wanted.high, abs=0.003)


def test_the_models_see_the_same_draws() -> None:
    same = right(0.5, 100, 0)
    ((found,),) = paired_intervals([weighted_mean(same), weighted_mean(same)], 100, draws=50, seed=0)
    assert found == (0.0, 0.0)


def test_a_seed_gives_the_same_interval_again() -> None:
    statistics = [weighted_mean(right(0.5, 50, seed)) for seed in (0, 1)]
    once, again, another = (paired_intervals(statistics, 50, draws=100, seed=seed) for seed in (3, 3, 4))
    assert once == again != another


def test_one_model_has_no_difference() -> None:
    assert paired_intervals([weighted_mean(right(0.5, 10, 0))], 10, draws=100, seed=0) == []


def test_a_value_that_is_none_does_not_count() -> None:
    statistic = weighted_mean(np.array([[1.0, np.nan], [0.0, 0.5], [1.0, np.nan]]))
    assert statistic(np.array([1.0, 2.0, 1.0])).tolist() == [0.5, 0.5]
    assert statistic(np.array([2.0, 0.0, 1.0])).tolist() == [1.0, 0.0]
