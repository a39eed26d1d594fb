"""Run queries on several streams: begun in order of arrival, each by the first stream that is free.

Open loop: when queries arrive is drawn before the trial begins, and doesn't depend on how fast they are answered. A
latency that counts from when a query was *sent* leaves out how long it had to wait for that ("coordinated omission",
G. Tene, How NOT to Measure Latency); here it counts from when it was due.

The clock and what runs are handed in, so that tests can simulate both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, takewhile
from typing import NamedTuple, Protocol

import numpy as np

# A server gives up queries that aren't begun by this many times the time over which they arrive.
GIVE_UP = 2.0


class Clock(Protocol):
    """Seconds since some start."""

    def now(self) -> float:
        """The time."""
        ...

    def sleep_until(self, moment: float) -> None:
        """Wait; not at all where it has passed."""
        ...


class WallClock:
    """Real time since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now(self) -> float:
        """The time."""
        return time.perf_counter() - self._start

    def sleep_until(self, moment: float) -> None:
        """Wait; the system wakes a sleeper a little late, and that counts as waiting of the query."""
        left = moment - self.now()
        if left > 0:
            time.sleep(left)


class Done(NamedTuple):
    """When a query was begun and ended, in seconds."""

    started: float
    done: float


def poisson_arrivals(rate: float, seconds: float, seed: int) -> tuple[float, ...]:
    """Moments at which independent queries arrive: gaps are exponential with mean 1 / rate.

    Args:
        rate: Queries per second, on average.
        seconds: Until when.
        seed: The result is a function of all three.

    Returns:
        Seconds from 0 to `seconds`, ascending; at least one.
    """
    rng = np.random.default_rng(seed)
    gaps = iter(lambda: float(rng.exponential(1 / rate)), None)
    arrivals = tuple(takewhile(lambda moment: moment < seconds, accumulate(gaps)))
    return arrivals or (0.0,)


class Queue:
    """Queries in order of arrival; streams take from it until it is empty, or the time is up."""

    def __init__(self, clock: Clock, due: Sequence[float] | None, until: float) -> None:
        """Prepare.

        Args:
            clock: The time.
            due: When each query arrives, ascending; None: as many as are wanted, all at once.
            until: After this moment no query is begun.
        """
        self._clock = clock
        self._due = due
        self._until = until
        self._taken: list[Done | None] = []
        self._lock = threading.Lock()

    def work(self, infer: Callable[[], object]) -> None:
        """What one stream does: take the next query, wait until it is due, and run it."""
        while (number := self._take()) is not None:
            if self._due is not None:
                self._clock.sleep_until(self._due[number])
            started = self._clock.now()
            infer()
            self._taken[number] = Done(started, self._clock.now())

    def finished(self) -> tuple[Done, ...]:
        """Every query that was taken, in order of arrival; all of them are done once all streams are."""
        return tuple(entry for entry in self._taken if entry is not None)

    def stop(self) -> None:
        """Let no further query be taken."""
        with self._lock:
            self._until = float("-inf")

    def _take(self) -> int | None:
        with self._lock:
            number = len(self._taken)
            if self._clock.now() > self._until or (self._due is not None and number >= len(self._due)):
                return None
            self._taken.append(None)
            return number
