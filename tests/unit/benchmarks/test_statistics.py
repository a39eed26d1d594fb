from __future__ import annotations

import random
import statistics as standard

import numpy as np
import pytest

from gpusq_deploy.benchmarks import statistics

# importorskip hands back Any: scipy ships no types. It is always there, as scikit-learn's dependency.
stats = pytest.importorskip("scipy.stats")


def test_throughput_counts_samples_not_batches() -> None:
    assert statistics.throughput(8, np.array([[1.0, 4.0], [4.0, 100.0]])) == 2000.0


@pytest.mark.parametrize(("percent", "floor"), [(90, 64), (99, 459)])
def test_a_tail_below_its_floor_says_why(percent: int, floor: int) -> None:
    samples = np.arange(1, floor + 1).astype(np.float64)
    assert statistics.tail(samples, percent).value == float(-(-percent * floor // 100))
    short = statistics.tail(samples[:-1], percent)
    assert short.value is None
    assert short.reason == f"p{percent} needs {floor} samples, there are {floor - 1}"


def test_459_samples_bound_the_p99_with_99_percent_confidence() -> None:
    assert 0.99 ** statistics.SAMPLE_FLOORS[99] < 0.01 <= 0.99 ** (statistics.SAMPLE_FLOORS[99] - 1)


def test_variation_is_the_standard_librarys() -> None:
    values = [9.0, 10.0, 10.5, 12.0]
    expected = standard.stdev(values) / standard.mean(values)
    assert statistics.coefficient_of_variation(np.array(values)) == pytest.approx(expected, rel=1e-12)
    assert statistics.coefficient_of_variation(np.array([3.0])) == 0.0


@pytest.mark.parametrize(("spread", "warned"), [(0.02, False), (0.03, True)])
def test_instability_is_said_above_the_limit(spread: float, warned: bool) -> None:
    # Two values m ± d have a standard deviation of √2·d.
    samples = np.array([10 - 10 * spread / 2**0.5, 10 + 10 * spread / 2**0.5])
    warning = statistics.instability(samples)
    assert (warning is not None) == warned
    assert warning is None or "3.0%" in warning


@pytest.mark.parametrize(("between", "within"), [(0.02, 0.02), (0.0, 0.03)])
def test_the_interval_agrees_with_a_slow_hierarchical_bootstrap(between: float, within: float) -> None:
    rng = np.random.default_rng(5)
    base = 10 * np.exp(between * rng.standard_normal((6, 1)) + within * rng.standard_normal((6, 9)))
    head = 11 * np.exp(between * rng.standard_normal((5, 1)) + within * rng.standard_normal((5, 9)))
    dice = random.Random(3)

    def resampled(rows: list[list[float]]) -> float:
        drawn = [dice.choice(rows) for _ in rows]
        return standard.median([dice.choice(row) for row in drawn for _ in row])

    ratios = sorted(resampled(head.tolist()) / resampled(base.tolist()) for _ in range(4000))
    # Hesterberg's levels for five repeats and nine degrees of freedom, from scipy's distributions.
    level = float(stats.norm.cdf(-((5 / 4) ** 0.5) * stats.t.ppf(0.975, 9)))
    lower, upper = statistics.ratio_interval(base, head)
    assert lower == pytest.approx(float(np.quantile(ratios, level)), rel=4e-3)
    assert upper == pytest.approx(float(np.quantile(ratios, 1 - level)), rel=4e-3)


def test_pieces_of_the_bootstrap_cover_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.full((3, 4), 7.0)
    monkeypatch.setattr(statistics, "_CHUNK", 100)
    assert statistics.ratio_interval(samples, 2 * samples) == (2.0, 2.0)


@pytest.mark.slow
def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(120):
        noise = 0.02 * rng.standard_normal((2, 5, 1)) + 0.02 * rng.standard_normal((2, 5, 15))
        base, head = np.exp(noise[0]), 1.05 * np.exp(noise[1])
        lower, upper = statistics.ratio_interval(base, head)
        hits += lower <= 1.05 <= upper
    # 95 % nominal, 114 of 120; 106 lies more than three standard errors below it.
    assert hits >= 106


def test_an_interval_needs_two_repeats() -> None:
    one, two = np.ones((1, 5)), np.ones((2, 5))
    with pytest.raises(ValueError, match="two repeats"):
        statistics.ratio_interval(one, two)


def test_five_repeats_can_prove_and_four_cannot() -> None:
    def best(repeats: int) -> float:
        ranks = np.arange(repeats).astype(np.float64)
        return statistics.mann_whitney(ranks + repeats, ranks)

    assert best(5) == pytest.approx(1 / 252)
    assert best(4) == pytest.approx(1 / 70)
    assert best(5) < 0.01 < best(4)


def test_all_equal_values_prove_nothing() -> None:
    assert statistics.mann_whitney(np.ones(5), np.ones(5)) == 1.0
    assert statistics.mann_whitney(np.ones(30), np.ones(30)) == 1.0


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match="both sides"):
        statistics.mann_whitney(np.ones(0), np.ones(3))


def test_medians_are_taken_per_repeat() -> None:
    assert statistics.unit_medians(np.array([[1.0, 2.0, 9.0], [4.0, 4.0, 5.0]])).tolist() == [2.0, 4.0]
