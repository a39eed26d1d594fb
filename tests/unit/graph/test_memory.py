"""What is given back is really gone from the process."""

from __future__ import annotations

import ctypes
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from gpusq_deploy.graph.memory import give_back, large_blocks_given_back

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library isn't glibc"
)


class Node:
    """Holds itself in a circle."""

    def __init__(self) -> None:
        self.me = self


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def test_what_holds_itself_is_collected() -> None:
    seen = weakref.ref(Node())
    give_back()
    assert seen() is None


@glibc
def test_freed_blocks_below_the_usual_threshold_leave_the_process() -> None:
    with large_blocks_given_back():
        before = resident()
        blocks = [np.ones(1 << 20, np.float32) for _ in range(25)]
        grown = resident() - before
        del blocks[::2]  # holes: a heap could only be cut at its end
        left = resident() - before
    assert grown > 90 << 20
    assert left < 0.6 * grown
