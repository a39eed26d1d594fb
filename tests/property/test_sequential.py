"""The sequential gate against scipy, slow references and simulation."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gpusq_deploy.benchmarks import sequential
from gpusq_deploy.benchmarks.sequential import decide

# importorskip hands back Any: scipy ships no types. It is always there, as scikit-learn's dependency.
stats = pytest.importorskip("scipy.stats")

untimed = settings(deadline=None, max_examples=40)


@untimed
@given(st.integers(1, 60), st.floats(1e-7, 0.5))
def test_the_critical_sum_is_the_smallest_that_is_rare_enough(pairs: int, level: float) -> None:
    # scipy's exact test, told a sample whose positive ranks have that sum.
    critical = sequential.critical_sum(pairs, level)
    if critical is None:
        assert 2.0**-pairs > level
        return
    assert _scipy_tail(pairs, critical) <= level * (1 + 1e-9)
    assert critical == 0 or _scipy_tail(pairs, critical - 1) > level * (1 - 1e-9)


def _scipy_tail(pairs: int, total: int) -> float:
    left = total
    signs: list[int] = []
    for rank in range(pairs, 0, -1):
        signs.append(1 if left >= rank else -1)
        left -= rank if left >= rank else 0
    values = np.array(signs[::-1]) * np.arange(1.0, pairs + 1)
    return float(stats.wilcoxon(values, alternative="greater", method="exact").pvalue)


def test_the_normal_approximation_is_on_the_safe_side() -> None:
    for level in (1e-3, 1e-5, 1e-6):
        exact = sequential.critical_sum(sequential.EXACT_PAIRS, level)
        assert exact is not None
        pairs = sequential.EXACT_PAIRS + 1
        tail = np.flatnonzero(sequential.upper_tail(pairs) <= level)[0]
        approximate = sequential.critical_sum(pairs, level)
        assert approximate is not None
        assert tail <= approximate <= 1.01 * tail


@untimed
@given(st.integers(0, 2**32), st.integers(11, 40), st.floats(-0.05, 0.4), st.booleans())
def test_a_verdict_is_the_test_of_scipy_at_the_level_of_the_look(
    seed: int, pairs: int, shift: float, weighed: bool
) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(1, 4, pairs) if weighed else np.ones(pairs)
    differences = shift + 0.03 * rng.standard_t(3, pairs) / weights
    look = sequential.last_look(pairs)
    assert look is not None
    used = (weights * (differences - math.log(1.03)))[: look.pairs]
    slower = stats.wilcoxon(used, alternative="greater", method="exact").pvalue
    faster = stats.wilcoxon(used, alternative="less", method="exact").pvalue
    found = decide(differences, 0.03, weights=weights if weighed else None)
    assert (found.verdict == "regressed") == (slower <= 0.001 * look.share)
    assert (found.verdict == "holds") == (faster <= 0.01 * look.share)
    assert found.lower <= found.ratio <= found.upper


def test_all_looks_together_spend_no_more_than_the_errors() -> None:
    taken = list(islice(sequential.looks(), 2000))
    assert taken[0].pairs == 11
    assert 0.999 < sum(look.share for look in taken) < 1
    assert all(later.pairs > earlier.pairs for earlier, later in pairwise(taken))


@untimed
@given(st.integers(1, 10))
def test_before_the_first_look_nothing_is_decided(pairs: int) -> None:
    found = decide(np.full(pairs, 0.5), 0.03)
    assert (found.verdict, found.more) == ("inconclusive", 11 - pairs)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        decide(np.array([]), 0.03)


def _gate(
    differences: sequential.Differences, budget: float, most: int, weights: sequential.Differences | None = None
) -> str:
    weighed = np.ones_like(differences) if weights is None else weights
    for look in sequential.looks():
        if look.pairs > most:
            return "inconclusive"
        verdict = decide(differences[: look.pairs], budget, weights=weighed[: look.pairs]).verdict
        if verdict != "inconclusive":
            return verdict
    raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("freedom", [1.5, 30])
def test_at_the_budget_itself_wrong_verdicts_stay_below_their_rates(freedom: float) -> None:
    """The worst case: a head exactly at the budget, looked at up to 115 pairs, under light and under wild tails.

    The first pairs are shorter, so they spread more.
    """
    rng = np.random.default_rng(17)
    gates = 1000
    spread = np.where(np.arange(115) < sequential.FIRST_LOOK, 0.08, 0.02)
    weights = 0.08 / spread
    found = (math.log(1.03) + spread * rng.standard_t(freedom, 115) for _ in range(gates))
    verdicts = [_gate(differences, 0.03, 115, weights) for differences in found]
    # Both rates are bounds; these are the counts that a true rate at the bound exceeds in less than 1 of 1,000 runs.
    assert verdicts.count("regressed") <= stats.binom.ppf(0.999, gates, 0.001)
    assert verdicts.count("holds") <= stats.binom.ppf(0.999, gates, 0.01)


def test_a_third_more_is_decided_at_the_first_looks_however_wild_the_noise() -> None:
    rng = np.random.default_rng(2)
    verdicts = [_gate(math.log(1.33) + 0.06 * rng.standard_t(2, 36), 0.03, 36) for _ in range(100)]
    assert verdicts.count("regressed") >= 99


def test_what_more_would_decide_is_about_right() -> None:
    rng = np.random.default_rng(8)
    differences = math.log(1.05) + 0.04 * rng.standard_normal(400)
    first = decide(differences[:48], 0.03)
    assert first.verdict == "inconclusive"
    assert first.more is not None
    needed = next(
        look.pairs for look in sequential.looks() if decide(differences[: look.pairs], 0.03).verdict != "inconclusive"
    )
    assert needed / 3 <= 48 + first.more <= needed * 3


def test_several_families_share_the_errors() -> None:
    rng = np.random.default_rng(9)
    differences = 0.045 + 0.01 * rng.standard_normal(15)
    alone, shared = decide(differences, 0.03), decide(differences, 0.03, families=8)
    assert shared.lower <= alone.lower
    assert shared.upper >= alone.upper
