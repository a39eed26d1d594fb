"""The sequential gate: after some pairs of processes, is it decided? Pure functions on log ratios of pairs.

A pair gives d, see `pairs.log_ratio`. Where noise hits both sides of a pair alike, d is symmetric about
the true log ratio, whatever else its distribution: tails may be heavy and pairs unlike each other. Wilcoxon's
signed-rank test is then exact (Hollander, Wolfe, Chicken, Nonparametric Statistical Methods, 3rd edition, section 3.1),
and so are the bounds that its inversion gives, two of the sorted averages (d_i + d_j)/2 (ibid., section 3.3).

Pairs of other lengths spread by other amounts, so each has a weight w, which may depend on its length, not on what it
says: the test is of w_i (d_i - c), symmetric as well where d_i is about c. With z = w (d - c), z_i + z_j > 0 just where
c is below (w_i d_i + w_j d_j)/(w_i + w_j), so that the bounds are two of those sorted averages.

Looking again and again is paid for by alpha spending (Lan, DeMets, Biometrika 70, 1983): the k-th look may err with

    alpha_k = alpha / (k (k + 1)),      the sum over all looks is alpha

so that by Bonferroni's inequality the chance of a wrong verdict at any look, however long it goes on, is at most alpha:

    regressed    lower bound at alpha_k of REGRESSED_ERROR > log(1 + budget)
    holds        upper bound at alpha_k of HOLDS_ERROR     < log(1 + budget)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Differences = npt.NDArray[np.float64]
SequentialVerdict = Literal["holds", "regressed", "inconclusive"]

# The chance that a head within the budget is called regressed, and that one beyond it is said to hold.
REGRESSED_ERROR = 0.001
HOLDS_ERROR = 0.01
# 2^-11 is the first power of a half that the first look may spend of REGRESSED_ERROR.
FIRST_LOOK = 11
_GROWTH = 4 / 3
EXACT_PAIRS = 200  # beyond, the normal approximation; its error at the levels used here is on the safe side

_NORMAL = NormalDist()


class Look(NamedTuple):
    """When to look: after so many pairs, at this share of each error."""

    pairs: int
    share: float


class Decision(NamedTuple):
    """What is known after a look. Ratios are head over base; infinite or 0 where too few pairs give no bound.

    `more` is the number of further pairs that would probably decide; None: decided, or more than can be told.
    """

    verdict: SequentialVerdict
    ratio: float
    lower: float
    upper: float
    more: int | None


def looks() -> Iterator[Look]:
    """All looks, without end: 11, 15, 20, 27, … pairs, each a third more."""
    pairs = FIRST_LOOK
    number = 1
    while True:
        yield Look(pairs, 1 / (number * (number + 1)))
        pairs = math.ceil(pairs * _GROWTH)
        number += 1


def last_look(pairs: int) -> Look | None:
    """The last look that so many pairs allow; None before the first."""
    found = None
    for look in looks():
        if look.pairs > pairs:
            return found
        found = look
    return found


def decide(
    differences: Differences, budget: float, *, families: int = 1, weights: Differences | None = None
) -> Decision:
    """Decide by the last look that the pairs allow; pairs after it are left for the next one.

    Args:
        differences: [pairs] log of head over base, see `pairs.log_ratio`, in the order they were taken.
        budget: As a share: 0.03 allows 3 % more latency.
        families: Batch sizes or models that are decided together: each gets its share of both errors, so that the
            chance of any false alarm stays the same (Bonferroni).
        weights: [pairs] positive, of each pair; None: equal ones.

    Raises:
        ValueError: There are no pairs.
    """
    if not differences.size:
        raise ValueError("a decision needs at least one pair")
    look = last_look(differences.size)
    weighed = np.ones_like(differences) if weights is None else weights
    if look is None:
        ratio = math.exp(float(np.median(averages(differences, weighed))))
        return Decision("inconclusive", ratio, 0.0, math.inf, FIRST_LOOK - differences.size)
    walsh = averages(differences[: look.pairs], weighed[: look.pairs])
    share = look.share / families
    lower = _lower_bound(walsh, look.pairs, REGRESSED_ERROR * share)
    upper = -_lower_bound(-walsh[::-1], look.pairs, HOLDS_ERROR * share)
    limit = math.log1p(budget)
    verdict = _verdict(lower, upper, limit)
    centre = float(np.median(walsh))
    more = _more(walsh, look, limit, families) if verdict == "inconclusive" else None
    if more is not None:
        more = max(1, more - (differences.size - look.pairs))
    return Decision(verdict, math.exp(centre), math.exp(lower), _exp(upper), more)


def averages(differences: Differences, weights: Differences | None = None) -> Differences:
    """Walsh's averages (d_i + d_j)/2 for i ≤ j, ascending: [n (n + 1)/2]. Their median estimates the centre.

    With weights (w_i d_i + w_j d_j)/(w_i + w_j).
    """
    weighed = np.ones_like(differences) if weights is None else weights
    rows, columns = np.triu_indices(differences.size)
    sums = (weighed * differences)[rows] + (weighed * differences)[columns]
    found: Differences = np.sort(sums / (weighed[rows] + weighed[columns]))
    return found


def critical_sum(pairs: int, level: float) -> int | None:
    """The smallest t with P(W ≥ t) ≤ level; W is the sum of the ranks of the positive ones of `pairs` symmetric values.

    Exact up to `EXACT_PAIRS`. None: not even the largest sum, all positive, is as rare.
    """
    total = pairs * (pairs + 1) // 2
    if pairs > EXACT_PAIRS:
        deviation = math.sqrt(pairs * (pairs + 1) * (2 * pairs + 1) / 24)
        # Half a rank more: the correction for continuity.
        return min(total, math.ceil(total / 2 + _NORMAL.inv_cdf(1 - level) * deviation + 0.5))
    rare = np.flatnonzero(upper_tail(pairs) <= level)
    return int(rare[0]) if rare.size and rare[0] <= total else None


@functools.lru_cache(maxsize=64)
def upper_tail(pairs: int) -> Differences:
    """P(W ≥ t) for t = 0…n(n+1)/2: each rank is in or out with a half."""
    chances = np.zeros(pairs * (pairs + 1) // 2 + 1)
    chances[0] = 1.0
    for rank in range(1, pairs + 1):
        moved = np.concatenate([np.zeros(rank), chances[:-rank]])
        chances = (chances + moved) / 2
    tail: Differences = np.cumsum(chances[::-1])[::-1]
    return tail


def _lower_bound(walsh: Differences, pairs: int, level: float) -> float:
    """Below the centre but for a chance of `level`: the largest value that the signed-rank test still refuses."""
    critical = critical_sum(pairs, level)
    return -math.inf if critical is None else float(walsh[walsh.size - critical])


def _verdict(lower: float, upper: float, limit: float) -> SequentialVerdict:
    if lower > limit:
        return "regressed"
    return "holds" if upper < limit else "inconclusive"


def _more(walsh: Differences, look: Look, limit: float, families: int) -> int | None:
    """Pairs until the look at which the bound would pass the limit, if centre and spread stay as they are.

    The spread of one pair is told from the width of a bound: with s the standard error at n pairs, s·√n.
    """
    centre = float(np.median(walsh))
    low = _lower_bound(walsh, look.pairs, 0.16)
    spread = (centre - low) * math.sqrt(look.pairs)
    distance = abs(centre - limit)
    error = REGRESSED_ERROR if centre > limit else HOLDS_ERROR
    for later in looks():
        if later.pairs > _FAR:
            return None
        if later.pairs > look.pairs:
            z = _NORMAL.inv_cdf(1 - error * later.share / families)
            if z * spread / math.sqrt(later.pairs) < distance:
                return later.pairs - look.pairs
    return None


_FAR = 100_000


def _exp(value: float) -> float:
    return math.inf if value == math.inf else math.exp(value)
