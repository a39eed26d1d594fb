"""How many threads linear algebra takes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def single_threaded_blas() -> Generator[None, None, None]:
    """One thread for each product or factorisation, wherever it is called from.

    Sums then don't depend on the number of cores. Many middle-sized products run faster side by side than each on all
    cores, where BLAS threads wait for each other in busy loops.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield
