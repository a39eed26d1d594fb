"""The first GPU through PyCUDA, which ships no types."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from gpusq_deploy.engines.cuda_api import CudaDevice, CudaError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class PycudaDevice(CudaDevice):
    """See `CudaDevice`."""

    def __init__(self, driver: Any, api: str) -> None:
        self.api: str = api
        self.Error: type[Exception] = driver.Error
        self._driver = driver
        self._memory: dict[int, Any] = {}
        device = driver.Device(0)
        self.name: str = device.name()
        self._context = device.retain_primary_context()
        try:
            self.push()
            try:
                self._stream = driver.Stream(_NON_BLOCKING)
                self._events = (driver.Event(), driver.Event())
            finally:
                self.pop()
        except BaseException:
            self._context.detach()
            raise
        self.stream: int = self._stream.handle

    @override
    def push(self) -> None:
        self._context.push()

    @override
    def pop(self) -> None:
        self._context.pop()

    @override
    def synchronize(self) -> None:
        self._stream.synchronize()

    @override
    def time(self, enqueue: Callable[[], None]) -> float:
        start, end = self._events
        start.record(self._stream)
        enqueue()
        end.record(self._stream)
        end.synchronize()
        return float(start.time_till(end))

    @override
    def memory(self, size: int) -> int:
        allocation = self._driver.mem_alloc(size)
        self._memory[int(allocation)] = allocation
        return int(allocation)

    @override
    def free(self, address: int) -> None:
        self._memory.pop(address).free()

    @override
    def pinned(self, size: int) -> NDArray[np.uint8]:
        return cast("NDArray[np.uint8]", self._driver.pagelocked_empty(size, np.uint8))

    @override
    def unpin(self, array: NDArray[np.uint8]) -> None:
        # PyCUDA promises that the base of such an array is its allocation.
        cast("Any", array.base).free()

    @override
    def upload(self, address: int, source: NDArray[np.uint8]) -> None:
        self._driver.memcpy_htod_async(address, source, self._stream)

    @override
    def download(self, target: NDArray[np.uint8], address: int) -> None:
        self._driver.memcpy_dtoh_async(target, address, self._stream)

    @override
    def close(self) -> None:
        try:
            self.push()
            try:
                # Their last references: PyCUDA gives them back, in their context.
                del self._stream, self._events
            finally:
                self.pop()
        finally:
            self._context.detach()


def find() -> Callable[[], CudaDevice] | str:
    """What opens the first GPU, or why this package can't."""
    try:
        version: str = cast("Any", importlib.import_module("pycuda")).VERSION_TEXT
        driver: Any = importlib.import_module("pycuda.driver")
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "pycuda"
        return "pycuda is not installed" if absent else f"pycuda can't be imported: {error}"
    try:
        driver.init()
    except driver.Error as error:
        return f"PyCUDA {version} can't start the driver: {error}"

    def opened() -> CudaDevice:
        try:
            return PycudaDevice(driver, f"PyCUDA {version}")
        except driver.Error as error:
            raise CudaError(str(error)) from error

    return opened
