"""The border between torch and numpy."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any, cast

import numpy.typing as npt
import torch


def array_from_tensor(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor's values as a numpy array that shares its memory; torch leaves the array's type open."""
    return cast("npt.NDArray[Any]", tensor.numpy())


# Linux's number for "write these pages back if they differ from the file, and take them": contents aren't harmed.
_MADV_PAGEOUT = 21


def release(tensor: torch.Tensor) -> None:
    """Give back the memory that reading a tensor took, where it lies in a mapped file; the next read maps it again.

    A hint: where the system doesn't know it, nothing happens.
    """
    start, size = tensor.data_ptr(), tensor.nbytes
    first, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform == "linux" and end > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_PAGEOUT)
