"""What a session needs of the CUDA driver: the first GPU, one stream on it, and memory. Two packages bring it.

Both use the device's primary context, which is also TensorRT's and torch's, so that all of them share the GPU in one
process. cuda-bindings is NVIDIA's own and a wheel; PyCUDA is compiled against a CUDA toolkit when it is installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from gpusq_deploy.engines.gpu import NoGpu, find_gpu
from gpusq_deploy.errors import GpusqError

CudaName = Literal["cuda-bindings", "pycuda"]

# In the order in which they are tried.
CUDA_NAMES: tuple[CudaName, ...] = get_args(CudaName)
_MODULES: Mapping[CudaName, str] = {"cuda-bindings": "bindings_driver", "pycuda": "pycuda_driver"}

_NEEDS_PACKAGE = "install cuda-bindings of the driver's CUDA version or older, or pycuda"
_NEEDS_GPU = "run it on a machine with an NVIDIA GPU and its driver"

# Words of CUDA's error names and texts, and what to do.
_HINTS = {
    "out of memory": "take a smaller batch, or end what else uses the GPU's memory",
    "illegal": "the GPU's context is lost: start again",
    "launch failed": "the GPU's context is lost: start again",
    "no device": _NEEDS_GPU,
}


class CudaError(Exception):
    """A call of the driver failed; its text has CUDA's name of the error."""


class CudaDevice(Protocol):
    """The first GPU, with one stream; not for several threads.

    Everything but `push`, `pop`, `close` and the attributes needs its context to be current, and may raise `Error`.

    Attributes:
        api: Which package calls the driver, and its version.
        name: The GPU's name.
        stream: The stream's native handle. It doesn't wait for the default stream, nor that one for it.
        Error: What calls raise when the driver refuses.
    """

    api: str
    name: str
    stream: int
    Error: type[Exception]

    def push(self) -> None:
        """Make its context the thread's current one."""
        ...

    def pop(self) -> None:
        """Undo the last push."""
        ...

    def synchronize(self) -> None:
        """Wait until the stream's work is done."""
        ...

    def time(self, enqueue: Callable[[], None]) -> float:
        """Milliseconds between two events in the stream, around what `enqueue` puts there."""
        ...

    def memory(self, size: int) -> int:
        """The address of so many new bytes on the device."""
        ...

    def free(self, address: int) -> None:
        """Give back what `memory` gave."""
        ...

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """So many new bytes of pinned host memory, from and to which copies run asynchronously."""
        ...

    def unpin(self, array: NDArray[np.uint8]) -> None:
        """Give back what `pinned` gave; no view of it may be used any more."""
        ...

    def upload(self, address: int, source: NDArray[np.uint8]) -> None:
        """Copy all bytes of pinned memory to the device, in the stream."""
        ...

    def download(self, target: NDArray[np.uint8], address: int) -> None:
        """Fill pinned memory from the device, in the stream."""
        ...

    def close(self) -> None:
        """Give back stream and context. Memory must have been given back before."""
        ...


def find_cuda(names: Sequence[CudaName] = CUDA_NAMES) -> Callable[[], CudaDevice] | str:
    """What opens the first GPU, by the first package that can; or why none can, each with its reason.

    Nothing but the driver is started. What is found may raise `CudaError` when it is called.
    """
    reasons: list[str] = []
    for name in names:
        module: Any = importlib.import_module(f"gpusq_deploy.engines.{_MODULES[name]}")
        found: Callable[[], CudaDevice] | str = module.find()
        if not isinstance(found, str):
            return found
        reasons.append(found)
    return "; ".join(reasons)


def open_cuda(names: Sequence[CudaName] = CUDA_NAMES, *, place: str) -> CudaDevice:
    """The first GPU.

    Args:
        names: The packages to try, in order.
        place: The engine that needs it, for the error.

    Raises:
        GpusqError: No GPU answers, no package is installed that can call this driver, or the driver refuses.
    """
    gpu = find_gpu()
    if isinstance(gpu, NoGpu):
        raise GpusqError(f"the engine can't run here: {gpu.reason}", place=place, hint=_NEEDS_GPU)
    found = find_cuda(names)
    if isinstance(found, str):
        raise GpusqError(f"nothing can call the CUDA driver: {found}", place=place, hint=_NEEDS_PACKAGE)
    try:
        return found()
    except CudaError as error:
        raise cuda_failed(error, place=place) from error


def cuda_failed(error: Exception, *, place: str) -> GpusqError:
    """A driver's error in our words, with what to do where we know it."""
    words = str(error).lower().replace("_", " ")
    hint = next((hint for known, hint in _HINTS.items() if known in words), None)
    return GpusqError(f"CUDA failed: {error}", place=place, hint=hint)
