"""What is given back is really gone from the process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import weakref

import pytest

from gpusq_deploy.graph.memory import give_back

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library isn't glibc"
)


class Node:
    """Holds itself in a circle."""

    def __init__(self) -> None:
        self.me = self


# In a process of its own: a heap that already has room for the blocks would take them.
FREE = """
from pathlib import Path
import numpy as np
from gpusq_deploy.graph.memory import give_back

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

warm = np.ones(24 << 18, np.float32)
del warm  # from here on glibc's own threshold is above these blocks' size
before = resident()
blocks = [np.ones(1 << 20, np.float32) for _ in range(25)]
grown = resident() - before
del blocks[::2]  # holes: a heap can only be cut at its end
kept = resident() - before
give_back()
print(grown, kept, resident() - before)
"""


def test_what_holds_itself_is_collected() -> None:
    seen = weakref.ref(Node())
    give_back()
    assert seen() is None


@glibc
def test_freed_blocks_below_the_usual_threshold_leave_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", FREE], capture_output=True, text=True, check=True)
    grown, kept, left = map(int, done.stdout.split())
    assert grown > 80 << 20
    assert kept > 0.9 * grown
    assert left < 0.6 * grown
