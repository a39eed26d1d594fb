"""Both processes of a pair on one core.

Cores of one machine differ: another core may be half of a busy pair of hardware threads, hold other work, or run at
another clock. The scheduler keeps each process on the core where it is, so that such a difference would burden one
side of the pair for all of its turns. Processes that compute in turns on one thread don't need two cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Of /proc/PID/stat, proc(5), counted behind the parenthesis that ends the name: field 39 of all.
_PROCESSOR = 36


def share_core(processes: Sequence[int]) -> int | None:
    """Keep processes on the core where the scheduler has the first of them.

    Args:
        processes: Their numbers. It is their main threads that are kept.

    Returns:
        The core; None where the system has no such thing (it isn't Linux) or doesn't allow it: then none is kept.
    """
    if sys.platform != "linux":
        return None
    kept: dict[int, set[int]] = {}
    try:
        core = int(Path(f"/proc/{processes[0]}/stat").read_text().rsplit(")", 1)[1].split()[_PROCESSOR])
        for process in processes:
            kept[process] = os.sched_getaffinity(process)
            os.sched_setaffinity(process, {core})
    except (OSError, IndexError):  # not allowed, or not told in a sandbox; or one has ended, which its silence tells
        for process, cores in kept.items():
            with suppress(OSError):
                os.sched_setaffinity(process, cores)
        return None
    return core
