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


def drop_weights(module: torch.nn.Module) -> None:
    """Free what a module's weights take, whoever else still holds them; the module stays, without values.

    torch's exporter keeps the parameters that it has seen alive. A module that nobody will ask for values any more.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        storage = tensor.untyped_storage()
        if storage.resizable():
            storage.resize_(0)
        else:
            release(tensor)
    module.to("meta")


def release_weights(module: torch.nn.Module) -> None:
    """Give back the memory that reading a module's mapped weights took; the module keeps them."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not tensor.untyped_storage().resizable():
            release(tensor)


def release(tensor: torch.Tensor) -> None:
    """Give back the memory that reading a tensor took, where it lies in a mapped file; the next read maps it again.

    A hint: where the system doesn't know it, nothing happens.
    """
    start, size = tensor.data_ptr(), tensor.nbytes
    first, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform == "linux" and end > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), _MADV_PAGEOUT)
