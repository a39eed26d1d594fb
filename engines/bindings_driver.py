"""The first GPU through cuda-bindings, NVIDIA's own package of the CUDA driver's functions.

A function there answers its status and then its results. The package ships no types.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from gpusq_deploy.engines.cuda_api import CudaDevice, CudaError

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_NAME_BYTES = 256


class Calls:
    """The driver's functions by name; whatever isn't success is raised."""

    def __init__(self, driver: ModuleType) -> None:
        self._driver = driver

    def __call__(self, name: str, *arguments: object) -> Any:
        """Call one.

        Returns:
            Its result; None where it has none.

        Raises:
            CudaError: It failed, the driver lacks it, or there is no driver.
        """
        try:
            status, *results = getattr(self._driver, name)(*arguments)
        # RuntimeError: no driver, or one without the function; ValueError: an error that is newer than the package.
        except (RuntimeError, ValueError) as error:
            raise CudaError(f"{name}: {error}") from error
        if int(status) != 0:
            said = [getattr(self._driver, ask)(status)[1] for ask in ("cuGetErrorName", "cuGetErrorString")]
            code, text = (word.decode(errors="replace") if word else f"error {int(status)}" for word in said)
            raise CudaError(f"{name}: {code} ({text})")
        return results[0] if results else None


class BindingsDevice(CudaDevice):
    """See `CudaDevice`."""

    Error: type[Exception] = CudaError

    def __init__(self, call: Calls, api: str) -> None:
        self.api: str = api
        self._call = call
        self._device = call("cuDeviceGet", 0)
        self.name: str = call("cuDeviceGetName", _NAME_BYTES, self._device).split(b"\0")[0].decode(errors="replace")
        self._context = call("cuDevicePrimaryCtxRetain", self._device)
        self._held = ExitStack()
        with ExitStack() as undo:
            undo.callback(self.close)
            self.push()
            try:
                self._stream = self._made("cuStream", _NON_BLOCKING)
                self._start, self._end = self._made("cuEvent", 0), self._made("cuEvent", 0)
            finally:
                self.pop()
            undo.pop_all()
        self.stream: int = int(self._stream)

    @override
    def push(self) -> None:
        self._call("cuCtxPushCurrent", self._context)

    @override
    def pop(self) -> None:
        self._call("cuCtxPopCurrent")

    @override
    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    @override
    def time(self, enqueue: Callable[[], None]) -> float:
        self._call("cuEventRecord", self._start, self._stream)
        enqueue()
        self._call("cuEventRecord", self._end, self._stream)
        self._call("cuEventSynchronize", self._end)
        return float(self._call("cuEventElapsedTime", self._start, self._end))

    @override
    def memory(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    @override
    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    @override
    def pinned(self, size: int) -> NDArray[np.uint8]:
        address = int(self._call("cuMemHostAlloc", size, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    @override
    def unpin(self, array: NDArray[np.uint8]) -> None:
        self._call("cuMemFreeHost", array.ctypes.data)

    @override
    def upload(self, address: int, source: NDArray[np.uint8]) -> None:
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self._stream)

    @override
    def download(self, target: NDArray[np.uint8], address: int) -> None:
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self._stream)

    @override
    def close(self) -> None:
        with ExitStack() as last:
            last.callback(self._call, "cuDevicePrimaryCtxRelease", self._device)
            self.push()
            last.callback(self.pop)
            self._held.close()

    def _made(self, kind: str, flags: int) -> Any:
        made = self._call(f"{kind}Create", flags)
        self._held.callback(self._call, f"{kind}Destroy", made)
        return made


def find() -> Callable[[], CudaDevice] | str:
    """What opens the first GPU, or why this package can't."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        version: str = importlib.import_module("cuda.bindings").__version__
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("cuda")
        return "cuda-bindings is not installed" if absent else f"cuda-bindings can't be imported: {error}"
    call = Calls(driver)
    try:
        call("cuInit", 0)
        newest = int(call("cuDriverGetVersion"))
    except CudaError as error:
        return f"cuda-bindings {version} can't start the driver: {error}"
    # The driver's number is 1000 x major + 10 x minor.
    major = newest // 1000
    if major < int(version.split(".", maxsplit=1)[0]):
        return (
            f"cuda-bindings {version} is too new for this driver, which knows CUDA {major}.{newest % 1000 // 10}: "
            f"pip install 'cuda-bindings<{major + 1}'"
        )

    def opened() -> CudaDevice:
        return BindingsDevice(call, f"cuda-bindings {version}")

    return opened
