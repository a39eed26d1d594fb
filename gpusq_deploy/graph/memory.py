"""Give memory back that nobody uses any more. What only glibc can do is left out where the C library is another."""

from __future__ import annotations

import ctypes
import gc
from typing import Any


def give_back() -> None:
    """Collect what holds itself in circles, as graphs do, and return freed memory to the system.

    glibc keeps freed blocks below 32 MiB for later, which most weights of a transformer are. To be called where a large
    model was let go of, not in a loop.
    """
    gc.collect()
    library: Any = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
