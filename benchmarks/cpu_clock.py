"""A second clock for a process that computes on one thread: the time of an inference without waiting for a core.

Where other work holds the cores, wall time is mostly waiting, in slices that the scheduler chooses: of a model with a
third more work it may be a tenth more. CPU time leaves that waiting out. It would also leave out waiting that is the
model's own (for a disk, a lock, another thread), and that is seen: the kernel counts how often the process gave up its
core of its own accord (`ru_nvcsw` of getrusage(2)). Of an inference in which it did, the wall time is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

_COARSEST_SECONDS = 1e-6


class Taken(NamedTuple):
    """Samples in ms by wall time, and without waiting for a core; the latter empty where it isn't measured."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...] = ()


def has_cpu_clock(runtime: str, threads: int | None) -> bool:
    """Whether CPU time says how long an inference takes: one thread on a CPU, and a system with a fine clock of it."""
    if runtime != "onnxruntime" or threads != 1:
        return False
    try:
        import resource  # not on Windows
    except ImportError:
        return False
    fine = time.get_clock_info("process_time").resolution <= _COARSEST_SECONDS
    return fine and hasattr(resource, "RUSAGE_SELF")


def take_samples(take: Callable[[], float], count: int, *, cpu_clock: bool) -> Taken:
    """Time inferences by both clocks.

    Args:
        take: Runs one and says its wall time in ms.
        count: How many.
        cpu_clock: Whether to read the second one, see `has_cpu_clock`.
    """
    if not cpu_clock:
        return Taken(tuple(take() for _ in range(count)))
    both = [_take_both(take) for _ in range(count)]
    return Taken(tuple(wall for wall, _ in both), tuple(cpu for _, cpu in both))


def _take_both(take: Callable[[], float]) -> tuple[float, float]:
    import resource

    waits = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
    start = time.process_time_ns()
    wall = take()
    cpu = (time.process_time_ns() - start) / 1e6
    waited = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw > waits
    return wall, wall if waited or cpu <= 0 else cpu
