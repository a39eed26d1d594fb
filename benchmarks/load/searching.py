"""The highest rate at which the p99 keeps to a limit, as MLPerf's Server scenario asks: by bisection."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gpusq_deploy.benchmarks.load.judging import judge, summarise_trial
from gpusq_deploy.benchmarks.load.values import LoadTrial

STEPS = 6
# At 662 queries one may take longer than the limit, at 459 none.
FEWEST_QUERIES = 662


class Found(NamedTuple):
    """The highest rate that met the limit and the lowest above it that didn't, in queries per second.

    `met` is None where none of those tried did.
    """

    met: float | None
    not_met: float
    trials: tuple[LoadTrial, ...]


def search_rate(try_rate: Callable[[float], LoadTrial], capacity: float, limit_ms: float) -> Found:
    """Halve the interval between rates that meet the limit and those that don't.

    Args:
        try_rate: Runs a trial at so many queries per second.
        capacity: Queries per second that can be done at all: no higher rate can meet any limit.
        limit_ms: For the p99 of the latency.

    Returns:
        Rates within capacity / 2^STEPS of each other.
    """
    low, high = 0.0, capacity
    trials: list[LoadTrial] = []
    for _ in range(STEPS):
        rate = (low + high) / 2
        trials.append(try_rate(rate))
        if judge(trials[-1], limit_ms) == "met":
            low = rate
        else:
            high = rate
    return Found(low or None, high, tuple(trials))


def capacity_of(offline: LoadTrial) -> float:
    """Queries per second of an offline trial."""
    return summarise_trial(offline).samples_per_second / offline.request.batch


def seconds_for(rate: float, least: float) -> float:
    """How long a trial must last to have enough queries, a tenth more than enough on average."""
    return max(least, 1.1 * FEWEST_QUERIES / rate)
