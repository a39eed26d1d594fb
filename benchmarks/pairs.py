"""Pairs: a fresh process of base and one of head, alive together, timed in turns A B B A.

Turns are a few inferences long, so that what the machine does meanwhile (another job, a clock that falls) burdens
both sides alike, and the pair's ratio keeps little of it. On one thread of a CPU both share a core, see `placement`.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from gpusq_deploy.artifacts import RuntimeInfo
from gpusq_deploy.benchmarks.cpu_clock import Taken, has_cpu_clock
from gpusq_deploy.benchmarks.placement import share_core
from gpusq_deploy.benchmarks.worker import WorkerRequest
from gpusq_deploy.benchmarks.worker_process import WorkerProcess

# Inferences of one turn, and those before them that don't count: the other side's threads may still spin.
TURN = 3
TURN_WARMUP = 1


class Span(NamedTuple):
    """How long a pair is timed, all batch sizes together: so many seconds, or this share of what it took to start."""

    seconds: float
    of_start: float

    def after(self, start: float) -> float:
        """Seconds, where the processes took `start` seconds."""
        return max(self.seconds, self.of_start * start)


# The first pairs are short: they see a large effect, and longer ones see it no sooner. Those that are needed beyond the
# first look seek a small one; where cores are so busy that processes start slowly, a pair must be worth its start.
FIRST_SPAN = Span(1.0, 1.0)
LATER_SPAN = Span(3.0, 1.0)
FEWEST_TURNS = 2
AT_ONCE = 4


class Sides(NamedTuple):
    """What base and head took in one pair: ms, in order."""

    base: Taken
    head: Taken

    @property
    def has_cpu(self) -> bool:
        """Whether both were timed by the second clock too, see `cpu_clock`."""
        return bool(self.base.cpu and self.head.cpu)


class Pair(NamedTuple):
    """Samples by batch size, the turns of each side, the wall time of all of it in s, and the load average before.

    `core` is the one that both processes shared; None where each ran where the scheduler put it.
    """

    samples: dict[int, Sides]
    turns: int
    opened: tuple[RuntimeInfo, RuntimeInfo]
    seconds: float
    load: float | None
    core: int | None


class Length(NamedTuple):
    """How long a pair is: so many turns of each side and batch size, or None: what fits into the span.

    What fits is told from the latencies of the warm-up, and is at most `most_turns`.
    """

    turns: int | None
    most_turns: int
    span: Span = LATER_SPAN


def pairs_at_once(request: WorkerRequest) -> int:
    """How many pairs of processes may start together.

    A process that waits for its turn uses no core where it computes on one thread of a CPU. Threads of several could
    spin, and a GPU's memory may hold two engines but not eight.
    """
    return AT_ONCE if has_cpu_clock(request.runtime, request.threads) else 1


def take_pairs(
    base: WorkerRequest, head: WorkerRequest, numbers: Sequence[int], *, warmup: int, length: Length
) -> tuple[Pair, ...]:
    """Measure every batch size of both sides, in several pairs of processes that start together, one pair at a time.

    On busy cores a start is most of what a pair costs, and several starts at once take hardly longer than one.

    Args:
        base: What holds today.
        head: What would replace it.
        numbers: Of these pairs, from 0: head goes first in odd ones.
        warmup: Inferences of each side and batch size before the first turn.
        length: How many turns, or how they are chosen, by the first of these pairs.

    Raises:
        GpusqError: A side can't be opened or run.
    """
    start = time.monotonic()
    taken: list[Pair] = []
    with ExitStack() as stack:
        orders = [(base, head) if number % 2 == 0 else (head, base) for number in numbers]
        processes = [[stack.enter_context(WorkerProcess(request)) for request in order] for order in orders]
        one_thread = has_cpu_clock(base.runtime, base.threads)
        started = [_Started(workers, [worker.opened() for worker in workers], one_thread) for workers in processes]
        starting = (time.monotonic() - start) / len(numbers)
        for number, pair in zip(numbers, started, strict=True):
            asked = length._replace(turns=taken[0].turns) if taken else length
            taken.append(_timed(pair, base.batches, warmup, asked, starting, forward=number % 2 == 0))
    return tuple(taken)


class _Started(NamedTuple):
    """The two processes of a pair, in the order that they started, what each opened, and whether it is one thread."""

    workers: list[WorkerProcess]
    opened: list[RuntimeInfo]
    one_thread: bool


def _timed(
    started: _Started, batches: Sequence[int], warmup: int, length: Length, starting: float, *, forward: bool
) -> Pair:
    """Time one pair, and end its processes; `forward`: base is the first of them."""
    start, load = time.monotonic(), load_average()
    workers = started.workers
    core = share_core([worker.pid for worker in workers]) if started.one_thread else None
    ordered = batches if forward else batches[::-1]
    slowest = sum(max(_warm(worker, batch, warmup) for worker in workers) for batch in ordered)
    count = length.turns or turns_within(length.span.after(starting), slowest, length.most_turns)
    samples: dict[int, Sides] = {}
    for batch in ordered:
        first, second = _in_turns(workers[0], workers[1], batch, count)
        samples[batch] = Sides(first, second) if forward else Sides(second, first)
    for worker in workers:
        worker.close()
    ours, theirs = started.opened if forward else started.opened[::-1]
    return Pair(samples, count, (ours, theirs), starting + time.monotonic() - start, load, core)


def log_ratio(base: Sequence[float], head: Sequence[float], turn: int = TURN) -> float:
    """What a pair says of head over base: the median over A B B A of the mean of both turns' log ratios.

    A turn's is log(median of head's turn / median of base's). Neighbours in time are compared with each other, so what
    slows both down for a while drops out; the ratio of the medians of all samples keeps it. Of the two turns of
    A B B A, each side comes once after the other one, whose data fill the caches, and once after itself: that drops out
    of their mean. See docs/benchmarking.md for what it does to the spread.

    Args:
        base: Samples in ms, in order, a multiple of `turn`.
        head: The same number.
        turn: Inferences of one turn.
    """
    ratios = [
        math.log(statistics.median(head[start : start + turn]) / statistics.median(base[start : start + turn]))
        for start in range(0, len(base), turn)
    ]
    return statistics.median(statistics.mean(ratios[first : first + 2]) for first in range(0, len(ratios), 2))


def turns_within(seconds: float, slowest_ms: float, most: int) -> int:
    """Turns of each side that fit into a time, at least two and at most `most`: an even number, for A B B A."""
    fitting = int(seconds * 1000 / (2 * (TURN + TURN_WARMUP) * slowest_ms))
    return max(FEWEST_TURNS, min(most, fitting) // 2 * 2)


def load_average() -> float | None:
    """Jobs that ran or waited to run in the last minute, on average; None where the system doesn't say."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _warm(worker: WorkerProcess, batch: int, count: int) -> float:
    """The median latency after a warm-up, in ms."""
    return statistics.median(worker.take(batch, TURN, warmup=count))


def _in_turns(first: WorkerProcess, second: WorkerProcess, batch: int, turns: int) -> tuple[Taken, Taken]:
    taken: tuple[list[Taken], list[Taken]] = ([], [])
    for turn in range(turns):
        places = (0, 1) if turn % 2 == 0 else (1, 0)
        for place in places:
            worker = (first, second)[place]
            taken[place].append(worker.take_both(batch, TURN, warmup=TURN_WARMUP))
    return _joined(taken[0]), _joined(taken[1])


def _joined(turns: list[Taken]) -> Taken:
    return Taken(*(tuple(value for turn in clock for value in turn) for clock in zip(*turns, strict=True)))
