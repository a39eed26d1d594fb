"""Give memory back that nobody uses any more. What only glibc can do is left out where the C library is another."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

# mallopt's number for "blocks from this size on are mapped, and go back to the system when they are freed".
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20
# Where glibc's own threshold ends up in a process that frees large blocks.
_USUAL = 32 << 20


def give_back() -> None:
    """Collect what holds itself in circles, as graphs do, and return freed memory to the system.

    glibc keeps freed blocks below 32 MiB for later, which most weights of a transformer are. To be called where a large
    model was let go of, not in a loop.
    """
    gc.collect()
    if hasattr(_c_library(), "malloc_trim"):
        _c_library().malloc_trim(0)


@contextmanager
def large_blocks_given_back() -> Generator[None]:
    """While this lasts, blocks of 1 MiB or more go back to the system when they are freed; it costs page faults.

    Not those that the heap has room for: `give_back` is for them.
    """
    known = hasattr(_c_library(), "mallopt")
    if known:
        _c_library().mallopt(_M_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        if known:
            _c_library().mallopt(_M_MMAP_THRESHOLD, _USUAL)


def _c_library() -> Any:
    return ctypes.CDLL(None)
