"""What we use of PyCUDA's driver module, typed: the package ships no types."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gpusq_deploy.errors import GpusqError


class CudaContext(Protocol):
    """A CUDA context; the current one is a matter of the thread."""

    def push(self) -> None:
        """Make it current."""
        ...

    def pop(self) -> None:
        """Undo the last push."""
        ...

    def detach(self) -> None:
        """Give it back."""
        ...


class CudaDevice(Protocol):
    """A GPU."""

    def name(self) -> str:
        """The product's name."""
        ...

    def retain_primary_context(self) -> CudaContext:
        """The context that the CUDA runtime, and so TensorRT, uses by itself."""
        ...


class CudaStream(Protocol):
    """A queue of work."""

    @property
    def handle(self) -> int:
        """The native handle."""
        ...

    def synchronize(self) -> None:
        """Wait until its work is done."""
        ...


class CudaEvent(Protocol):
    """A point in a stream."""

    def record(self, stream: CudaStream) -> object:
        """Put it at the stream's end."""
        ...

    def synchronize(self) -> object:
        """Wait until the stream has passed it."""
        ...

    def time_till(self, event: CudaEvent) -> float:
        """Milliseconds from here to a later event."""
        ...


class CudaAllocation(Protocol):
    """Device memory; as an integer, its address."""

    def __int__(self) -> int: ...

    def free(self) -> None:
        """Give it back."""
        ...


class CudaDriver(Protocol):
    """The module `pycuda.driver`."""

    Error: type[Exception]
    Device: Callable[[int], CudaDevice]
    Stream: Callable[[], CudaStream]
    Event: Callable[[], CudaEvent]

    def init(self) -> None:
        """Start the driver; a second time does nothing."""
        ...

    def mem_alloc(self, size: int, /) -> CudaAllocation:
        """Device memory of this many bytes."""
        ...

    def pagelocked_empty(self, shape: int, dtype: DTypeLike) -> NDArray[np.uint8]:
        """Pinned host memory, which copies run from and to asynchronously."""
        ...

    def memcpy_htod_async(self, dest: CudaAllocation, src: NDArray[Any], stream: CudaStream) -> None:
        """Copy to the device, in the stream."""
        ...

    def memcpy_dtoh_async(self, dest: NDArray[Any], src: CudaAllocation, stream: CudaStream) -> None:
        """Copy from the device, in the stream."""
        ...


def load_cuda(*, place: str) -> CudaDriver:
    """PyCUDA's driver module, started.

    Args:
        place: The plan that needs it, for the error.

    Raises:
        GpusqError: PyCUDA isn't installed, can't be loaded or finds no driver.
    """
    try:
        driver = cast("CudaDriver", importlib.import_module("pycuda.driver"))
    except ImportError as error:
        raise GpusqError(
            f"engine plans are run through PyCUDA: {error}", place=place, hint="pip install 'gpusq-deploy[tensorrt]'"
        ) from error
    try:
        driver.init()
    except driver.Error as error:
        raise GpusqError(f"CUDA can't start: {error}", place=place, hint="plans run on a machine with a GPU") from error
    return driver
