"""Queries on streams in simulated time, beside queueing theory and beside a simulation that has no threads."""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpusq_deploy.benchmarks.load.driving import Done, Queue, poisson_arrivals
from gpusq_deploy.benchmarks.load.judging import binomial_cdf, judge, latencies, lateness, summarise_trial
from gpusq_deploy.benchmarks.load.searching import STEPS, search_rate
from gpusq_deploy.benchmarks.load.values import LoadTrial, TrialRequest

# importorskip hands back Any: scipy ships no types.
stats: Any = pytest.importorskip("scipy.stats")
Times = NDArray[np.float64]


class VirtualClock:
    """Time that passes only while every thread sleeps; then one of them, whose time is next, goes on."""

    def __init__(self, threads: int) -> None:
        self.time = 0.0
        self._awake = threads
        self._sleeping: list[tuple[float, int]] = []
        self._changed = threading.Condition()

    def now(self) -> float:
        return self.time

    def sleep_until(self, moment: float) -> None:
        with self._changed:
            if moment <= self.time:
                return
            me = (moment, threading.get_ident())
            heapq.heappush(self._sleeping, me)
            self._awake -= 1
            self._advance()
            self._changed.wait_for(lambda: me not in self._sleeping)

    def leave(self) -> None:
        with self._changed:
            self._awake -= 1
            self._advance()

    def _advance(self) -> None:
        if self._awake == 0 and self._sleeping:
            self.time, _ = heapq.heappop(self._sleeping)
            self._awake = 1
            self._changed.notify_all()


def simulated(
    due: Sequence[float] | None, services: Iterator[float], streams: int = 1, until: float = math.inf
) -> tuple[Done, ...]:
    """The real queue and its streams, in simulated time."""
    clock = VirtualClock(streams)
    queue = Queue(clock, due, until)

    def stream() -> None:
        queue.work(lambda: clock.sleep_until(clock.now() + next(services)))
        clock.leave()

    threads = [threading.Thread(target=stream) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return queue.finished()


def first_come(due: Sequence[float], services: Sequence[float], streams: int) -> list[Done]:
    """First come, first served, the obvious way: the next query goes to the stream that is free first."""
    free = [0.0] * streams
    found: list[Done] = []
    for arrived, service in zip(due, services, strict=True):
        started = max(arrived, heapq.heappop(free))
        found.append(Done(started, started + service))
        heapq.heappush(free, started + service)
    return found


def waits(due: Sequence[float], done: Sequence[Done]) -> Times:
    return np.array([entry.started - arrived for arrived, entry in zip(due, done, strict=True)])


def trial_of(due: Sequence[float], done: Sequence[Done], rate: float = 1.0, streams: int = 1) -> LoadTrial:
    return LoadTrial(
        request=TrialRequest(batch=2, streams=streams, seconds=max(due), rate=rate),
        due_ms=tuple(1000 * moment for moment in due),
        started_ms=tuple(1000 * entry.started for entry in done),
        done_ms=tuple(1000 * entry.done for entry in done),
    )


def exponential(mean: float, seed: int) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    return iter(lambda: float(rng.exponential(mean)), None)


def test_one_stream_of_a_known_service_time_waits_as_m_d_1_does() -> None:
    service, rate = 0.01, 50.0
    due = poisson_arrivals(rate, 300, seed=1)
    done = simulated(due, iter(lambda: service, None))
    busy = rate * service
    # Pollaczek and Khinchine: the mean wait is rho s / (2 (1 - rho)).
    assert np.mean(waits(due, done)) == pytest.approx(busy * service / (2 * (1 - busy)), rel=0.05)
    assert summarise_trial(trial_of(due, done, rate)).busy == pytest.approx(busy, rel=0.02)


def test_one_stream_of_exponential_service_times_has_the_tail_of_m_m_1() -> None:
    rate, served = 60.0, 100.0
    due = poisson_arrivals(rate, 300, seed=2)
    done = simulated(due, exponential(1 / served, seed=3))
    summary = summarise_trial(trial_of(due, done, rate))
    # The time in the system is exponential with the rate at which the server is faster.
    found = {"median": summary.median_ms, "p90": summary.p90_ms, "p99": summary.p99_ms}
    theory = {
        name: 1000 * math.log(1 / share) / (served - rate) for name, share in zip(found, (0.5, 0.1, 0.01), strict=True)
    }
    assert found == pytest.approx(theory, rel=0.08)


@pytest.mark.parametrize("streams", [1, 3])
def test_streams_serve_in_order_of_arrival(streams: int) -> None:
    due = poisson_arrivals(25.0 * streams, 12, seed=4)
    drawn = [next(draws) for draws in [exponential(0.03, seed=5)] for _ in due]
    done = simulated(due, iter(drawn), streams)
    assert np.array(done) == pytest.approx(np.array(first_come(due, drawn, streams)))


@pytest.mark.slow
def test_three_streams_wait_as_erlang_c_says() -> None:
    streams, rate, served = 3, 240.0, 100.0
    due = poisson_arrivals(rate, 100, seed=6)
    done = simulated(due, exponential(1 / served, seed=7), streams)
    load = rate / served
    queued = load**streams / math.factorial(streams) / (1 - load / streams)
    waiting = queued / (sum(load**k / math.factorial(k) for k in range(streams)) + queued)
    assert np.mean(waits(due, done)) == pytest.approx(waiting / (streams * served - rate), rel=0.1)


def test_a_stall_counts_for_everybody_who_arrived_meanwhile() -> None:
    due = poisson_arrivals(100.0, 10, seed=8)
    services = [0.001] * len(due)
    services[len(due) // 2] = 1.0
    trial = trial_of(due, simulated(due, iter(services)))
    late = int(np.count_nonzero(latencies(trial) > 10))
    assert late == pytest.approx(100, abs=25), "those that arrived within the second"
    # Counted from when a query was sent, only the one that stalled would be late.
    sent = np.array(trial.done_ms) - np.array(trial.started_ms)
    assert int(np.count_nonzero(sent > 10)) == 1


def test_offline_keeps_all_streams_busy_until_the_time_is_up() -> None:
    done = simulated(None, iter(lambda: 0.25, None), streams=2, until=9.9)
    assert len(done) == 80
    trial = LoadTrial(
        request=TrialRequest(batch=4, streams=2, seconds=9.9),
        started_ms=tuple(1000 * entry.started for entry in done),
        done_ms=tuple(1000 * entry.done for entry in done),
    )
    summary = summarise_trial(trial)
    assert (summary.samples_per_second, summary.busy) == pytest.approx((32.0, 1.0))
    assert (summary.median_ms, summary.p99_ms, summary.service_ms) == (None, None, 250.0)


def test_a_server_that_is_too_slow_gives_up_and_says_so() -> None:
    due = poisson_arrivals(20.0, 50, seed=9)
    done = simulated(due, iter(lambda: 0.2, None), until=100.0)
    trial = trial_of(due, done, rate=20.0)
    assert trial.unanswered == len(due) - len(done) > 400
    summary = summarise_trial(trial)
    assert (summary.p90_ms, summary.p99_ms) == (None, None)
    assert summary.remarks[0] == (
        "at 20 queries/s more arrive than are done (4.992/s): the queue grows, and latency with the duration"
    )
    assert "p99 has no end: more than 1 % of the queries were given up" in summary.remarks
    assert judge(trial, 1e9) == "missed"


def test_a_machine_that_begins_queries_late_is_told_and_a_queue_is_not() -> None:
    due = [0.1 * number for number in range(100)]
    woken = [Done(moment + 0.004, moment + 0.014) for moment in due]
    assert lateness(trial_of(due, woken)) == pytest.approx(4)
    (said, *_) = summarise_trial(trial_of(due, woken, rate=10.0)).remarks
    assert said.startswith("at 10 queries/s half were begun 4.000 ms late although a stream was free")
    arrivals = poisson_arrivals(25.0, 20, seed=12)
    queued = first_come(arrivals, [0.035] * len(arrivals), 1)
    assert lateness(trial_of(arrivals, queued)) == pytest.approx(0, abs=1e-9)
    assert not any("late" in said for said in summarise_trial(trial_of(arrivals, queued)).remarks)


def test_arrivals_are_a_poisson_process_of_their_seed() -> None:
    arrivals = poisson_arrivals(50.0, 200, seed=0)
    assert arrivals == poisson_arrivals(50.0, 200, seed=0) != poisson_arrivals(50.0, 200, seed=1)
    assert stats.kstest(np.diff(arrivals), stats.expon(scale=1 / 50).cdf).pvalue > 0.01
    assert stats.poisson(50 * 200).interval(0.99)[0] < len(arrivals) < stats.poisson(50 * 200).interval(0.99)[1]
    assert 0 < arrivals[0] <= arrivals[-1] < 200
    assert poisson_arrivals(1e-9, 1, seed=0) == (0.0,), "there is always one to time"


@pytest.mark.parametrize(
    ("most", "count", "share"), [(0, 459, 0.01), (3, 700, 0.01), (40, 5000, 0.01), (-1, 9, 0.5), (9, 9, 0.5)]
)
def test_the_binomial_sum_is_scipys(most: int, count: int, share: float) -> None:
    assert binomial_cdf(most, count, share) == pytest.approx(stats.binom.cdf(most, count, share), rel=1e-10)


@pytest.mark.parametrize(
    ("count", "late", "judgement"),
    # The fewest queries that may decide: 459 without one that is late, 662 with one.
    [
        (459, 0, "met"),
        (458, 0, "undecided"),
        (662, 1, "met"),
        (661, 1, "undecided"),
        (459, 4, "undecided"),
        (459, 12, "missed"),
    ],
)
def test_a_limit_is_met_where_few_enough_are_late(count: int, late: int, judgement: str) -> None:
    due = [float(number) for number in range(count)]
    done = [Done(moment, moment + (0.5 if number < late else 0.01)) for number, moment in enumerate(due)]
    assert judge(trial_of(due, done), 100.0) == judgement


@pytest.mark.slow
def test_the_search_finds_what_m_m_1_allows() -> None:
    served, limit = 100.0, 0.2

    def at(rate: float) -> LoadTrial:
        due = poisson_arrivals(rate, 20_000 / rate, seed=10)
        draws = exponential(1 / served, seed=11)
        return trial_of(due, first_come(due, [next(draws) for _ in due], 1), rate)

    found = search_rate(at, served, 1000 * limit)
    assert len(found.trials) == STEPS
    assert found.met is not None
    assert found.not_met - found.met == pytest.approx(served / 2**STEPS)
    # P(time in the system > limit) = exp(-(served - rate) limit).
    allowed = served - math.log(100) / limit
    assert allowed - 5 < found.met < allowed + 2


def test_a_limit_below_the_service_time_is_met_by_no_rate() -> None:
    def at(rate: float) -> LoadTrial:
        due = [number / rate for number in range(500)]
        return trial_of(due, [Done(moment, moment + 0.01) for moment in due], rate)

    found = search_rate(at, 100.0, 5.0)
    assert (found.met, found.not_met) == (None, 100 / 2**STEPS)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: TrialRequest(batch=0, streams=1, seconds=1),
        lambda: TrialRequest(batch=1, streams=1, seconds=1, rate=0),
        lambda: LoadTrial(request=TrialRequest(batch=1, streams=1, seconds=1), started_ms=(1.0,), done_ms=()),
        lambda: LoadTrial(request=TrialRequest(batch=1, streams=1, seconds=1), started_ms=(2.0,), done_ms=(1.0,)),
        lambda: LoadTrial(
            request=TrialRequest(batch=1, streams=1, seconds=1, rate=1), started_ms=(1.0,), done_ms=(2.0,)
        ),
    ],
)
def test_what_makes_no_sense_is_refused(broken: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"needs|each query|can't end"):
        broken()
