"""Does an NVIDIA GPU answer here? Asked of the driver itself, so that nothing need be installed to find out."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

_LIBRARY = "libcuda.so.1"
_SUCCESS = 0
# CUdevice_attribute, fixed in the driver's public interface.
_MAJOR, _MINOR = 75, 76


class Gpu(NamedTuple):
    """The first GPU: its name and its compute capability, such as "8.7"."""

    name: str
    compute_capability: str


class NoGpu(NamedTuple):
    """Why no GPU answers."""

    reason: str


def status_text(driver: object, status: int) -> str:
    """CUDA's name and text of a status, or its number where the driver, as ctypes loads it, has neither."""
    said: list[str] = []
    for function in ("cuGetErrorName", "cuGetErrorString"):
        ask, text = getattr(driver, function, None), ctypes.c_char_p()
        if ask is None or ask(status, ctypes.byref(text)) != _SUCCESS or text.value is None:
            return f"CUDA error {status}"
        said.append(text.value.decode(errors="replace"))
    return ": ".join(said)


def find_gpu(library: str = _LIBRARY) -> Gpu | NoGpu:
    """Ask the driver for its first GPU."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return NoGpu(f"no NVIDIA driver is installed ({library} can't be loaded)")
    status = driver.cuInit(0)
    if status != _SUCCESS:
        return NoGpu(f"the NVIDIA driver refused to start ({status_text(driver, status)})")
    count = ctypes.c_int(0)
    status = driver.cuDeviceGetCount(ctypes.byref(count))
    if status != _SUCCESS or count.value < 1:
        return NoGpu("the NVIDIA driver finds no GPU")
    return _first(driver)


def _first(driver: ctypes.CDLL) -> Gpu | NoGpu:
    device = ctypes.c_int(0)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    statuses = (
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
    )
    if any(status != _SUCCESS for status in statuses):
        return NoGpu(f"the NVIDIA driver doesn't describe its GPU (CUDA errors {list(statuses)})")
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")


def find_bus(library: str = _LIBRARY) -> str | None:
    """The first GPU's place on the PCI bus, such as "0000:65:00.0"; None where the driver doesn't tell."""
    if isinstance(find_gpu(library), NoGpu):
        return None
    driver = ctypes.CDLL(library)
    device, text = ctypes.c_int(0), ctypes.create_string_buffer(32)
    where = getattr(driver, "cuDeviceGetPCIBusId", None)
    if where is None or driver.cuDeviceGet(ctypes.byref(device), 0) != _SUCCESS:
        return None
    return text.value.decode(errors="replace") if where(text, len(text), device) == _SUCCESS else None
