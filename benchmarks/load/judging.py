"""What a trial shows: pure functions of its queries' times."""

from __future__ import annotations

import heapq
import math
from typing import Literal

import numpy as np

from gpusq_deploy.artifacts import Value
from gpusq_deploy.benchmarks.load.values import LoadTrial
from gpusq_deploy.benchmarks.statistics import Samples, Tail, median, tail

Judgement = Literal["met", "missed", "undecided"]

TAIL = 0.01
_DOUBT = 0.01
# Of the rate at which queries arrived: done more slowly, they pile up.
_KEPT_UP = 0.9
# Of the latency: a part that is the machine's and not the model's.
_LATE = 0.1


class TrialSummary(Value):
    """One trial.

    Attributes:
        answered: Queries that were done; `unanswered`: those that were given up.
        samples_per_second: Batch size times queries done, over the time from the start to the last one's end.
        busy: The share of that time in which a stream ran a query, on average over the streams.
        service_ms: Median time from a query's begin to its end.
        median_ms: Of the latency, from when a query was due; with `p90_ms` and `p99_ms`. None offline, where none is
            due, and where too few samples or too many given up leave none.
        remarks: Why one isn't there, whether more queries arrived than could be done, and whether the machine began
            them late.
    """

    answered: int
    unanswered: int
    samples_per_second: float
    busy: float
    service_ms: float
    median_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    remarks: tuple[str, ...]


def summarise_trial(trial: LoadTrial) -> TrialSummary:
    """Sum one trial up.

    Raises:
        ValueError: No query was answered.
    """
    if not trial.done_ms:
        raise ValueError("no query was answered")
    service = np.array(trial.done_ms) - np.array(trial.started_ms)
    span = max(trial.done_ms)
    latency = None if trial.request.rate is None else latencies(trial)
    middle, p90, p99 = (Tail(None, None),) * 3 if latency is None else _tails(latency)
    return TrialSummary(
        answered=len(trial.done_ms),
        unanswered=trial.unanswered,
        samples_per_second=1000 * trial.request.batch * len(trial.done_ms) / span,
        busy=float(service.sum()) / (trial.request.streams * span),
        service_ms=median(service),
        median_ms=middle.value,
        p90_ms=p90.value,
        p99_ms=p99.value,
        remarks=tuple(
            reason
            for reason in (_overload(trial, span), _begun_late(trial), middle.reason, p90.reason, p99.reason)
            if reason
        ),
    )


def _begun_late(trial: LoadTrial) -> str | None:
    """A sleeping thread wakes when the system lets it, which on a busy machine takes longer than an inference."""
    if trial.request.rate is None:
        return None
    late = median(lateness(trial))
    if late <= _LATE * median(latencies(trial)):
        return None
    what = f"at {trial.request.rate:.4g} queries/s half were begun {late:.3f} ms late although a stream was free"
    return f"{what}, and that is in their latency: other work holds the cores"


def _overload(trial: LoadTrial, span: float) -> str | None:
    """The time after the last arrival is at most the queue's, so a steady server is done soon after it."""
    rate, done = trial.request.rate, 1000 * len(trial.done_ms) / span
    arrived = 1000 * len(trial.due_ms) / max(trial.due_ms) if rate is not None and max(trial.due_ms) > 0 else 0
    if rate is None or done >= _KEPT_UP * arrived:
        return None
    what = f"at {rate:.4g} queries/s more arrive than are done ({done:.4g}/s)"
    return f"{what}: the queue grows, and latency with the duration"


def latencies(trial: LoadTrial) -> Samples:
    """Milliseconds from when each query was due until it was done; infinite for those that were given up."""
    found = np.full(len(trial.due_ms), np.inf)
    found[: len(trial.done_ms)] = np.array(trial.done_ms) - np.array(trial.due_ms[: len(trial.done_ms)])
    return found


def lateness(trial: LoadTrial) -> Samples:
    """Milliseconds by which each query was begun later than the first free stream could have begun it."""
    free = [0.0] * trial.request.streams
    found: list[float] = []
    for due, started, done in zip(trial.due_ms, trial.started_ms, trial.done_ms, strict=False):
        found.append(started - max(due, heapq.heappop(free)))
        heapq.heappush(free, done)
    return np.array(found)


def judge(trial: LoadTrial, limit_ms: float) -> Judgement:
    """Does the p99 keep to a limit?

    With n queries of which t took longer, as MLPerf's early stopping asks it (mlcommons/inference#1629):

        met         P(X <= t) <= 1 %,  X ~ B(n, 1 %): were more than 1 % to take longer, so few would hardly be seen
        missed      P(X >= t) <= 1 %
        undecided   neither: more queries would tell

    459 queries of which none takes longer are the fewest that can meet it. Queries that wait behind one another aren't
    independent, which both take them to be: near the limit another trial may say otherwise.

    Args:
        trial: Of a server.
        limit_ms: For latencies.
    """
    found = latencies(trial)
    late = int(np.count_nonzero(found > limit_ms))
    if binomial_cdf(late, found.size, TAIL) <= _DOUBT:
        return "met"
    return "missed" if 1 - binomial_cdf(late - 1, found.size, TAIL) <= _DOUBT else "undecided"


def binomial_cdf(most: int, count: int, share: float) -> float:
    """P(X <= most) of X ~ B(count, share), term by term in logarithms: exact to 1e-12 for some ten thousand trials."""
    terms = (
        math.exp(
            math.lgamma(count + 1)
            - math.lgamma(hit + 1)
            - math.lgamma(count - hit + 1)
            + hit * math.log(share)
            + (count - hit) * math.log1p(-share)
        )
        for hit in range(min(most, count) + 1)
    )
    return min(1.0, math.fsum(terms))


def _tails(latency: Samples) -> tuple[Tail, Tail, Tail]:
    middle = Tail(float(np.quantile(latency, 0.5, method="inverted_cdf")), None)
    return _finite(middle, 50), _finite(tail(latency, 90), 90), _finite(tail(latency, 99), 99)


def _finite(found: Tail, percent: int) -> Tail:
    if found.value is None or math.isfinite(found.value):
        return found
    return Tail(None, f"p{percent} has no end: more than {100 - percent} % of the queries were given up")
