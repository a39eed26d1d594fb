"""How many threads work takes."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

# Each runs a sample of its own, with all its activations.
_MOST_WORKERS = 16
# Where each also holds those activations, or a layer's covariance, while their channels are added up.
MOST_ADDERS = 4


def cpu_workers(limit: int = _MOST_WORKERS, *, processes: int = 1) -> int:
    """Threads for one of so many processes on this machine: its share of the processors that it may use."""
    return max(1, min(len(os.sched_getaffinity(0)) // processes, limit))


@contextmanager
def single_threaded_blas() -> Generator[None, None, None]:
    """One thread for each product or factorisation, wherever it is called from.

    Sums then don't depend on the number of cores. Many middle-sized products run faster side by side than each on all
    cores, where BLAS threads wait for each other in busy loops.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
