"""GPUs that a time can be predicted for: what their data sheets say, one entry each in devices.toml."""

from __future__ import annotations

import difflib
import math
from functools import lru_cache
from importlib import resources

import msgspec

from gpusq_deploy.artifacts import Value, value_from_toml
from gpusq_deploy.errors import GpusqError

_PLACE = "--device"


class Device(Value):
    """One GPU at one clock.

    Attributes:
        name: How it is asked for.
        target: The target that engines for it are built for.
        gpu: The product, and its power mode where that sets the clock.
        sms: Streaming multiprocessors.
        gigahertz: The clock at which the peak rates hold, 10^9 cycles a second.
        fp16_tflops: FP16 tensor cores that add in FP32, dense, 10^12 FLOPs a second.
        int8_tops: INT8 tensor cores, dense, 10^12 operations a second.
        gigabytes_per_second: Memory, 10^9 bytes a second.
        l2_megabytes: Second-level cache, 10^6 bytes.
        source: Where the numbers come from.
        default: Whether it is predicted where nobody names a device.
    """

    name: str
    target: str
    gpu: str
    sms: int
    gigahertz: float
    fp16_tflops: float
    int8_tops: float
    gigabytes_per_second: float
    l2_megabytes: float
    source: str
    default: bool = False

    def peak(self, precision: str) -> float:
        """FLOPs a microsecond; what isn't INT8 counts as FP16: FP32 is slower than that."""
        return (self.int8_tops if precision == "int8" else self.fp16_tflops) * 1e6


class _Devices(Value):
    device: tuple[Device, ...]


@lru_cache(maxsize=1)
def load_devices() -> tuple[Device, ...]:
    """Every device that this package knows, in the file's order.

    Raises:
        GpusqError: The file is damaged.
    """
    file = resources.files("gpusq_deploy.engines") / "prediction" / "devices.toml"
    return value_from_toml(file.read_text(encoding="utf-8"), _Devices, place=str(file), what="the devices").device


def find_device(name: str) -> Device:
    """The device of this name, whatever its case; `agx-orin@0.6` is that one at 0.6 GHz, as power modes set it.

    Raises:
        GpusqError: There is none, with a hint at what looks alike; or the clock isn't a positive number.
    """
    word, at, clock = name.lower().partition("@")
    known = {device.name: device for device in load_devices()}
    found = known.get(word)
    if found is None:
        near = difflib.get_close_matches(word, known, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise GpusqError(f"unknown device {word!r}", place=_PLACE, hint=f"{guess}known devices: {', '.join(known)}")
    return _at_clock(found, clock) if at else found


def device_of_target(target: str) -> Device | None:
    """The first device that engines for a target run on; None where none is known."""
    return next((device for device in load_devices() if device.target == target), None)


def _at_clock(device: Device, clock: str) -> Device:
    """The rates of its SMs follow the clock; its memory's don't."""
    try:
        gigahertz = float(clock)
    except ValueError:
        gigahertz = math.nan
    if not (math.isfinite(gigahertz) and gigahertz > 0):
        raise GpusqError(
            f"{clock!r} is no clock in GHz", place=_PLACE, hint=f"such as {device.name}@{device.gigahertz}"
        )
    share = gigahertz / device.gigahertz
    return msgspec.structs.replace(
        device,
        name=f"{device.name}@{gigahertz:g}",
        gpu=f"{device.gpu}, at {gigahertz:g} GHz",
        gigahertz=gigahertz,
        fp16_tflops=device.fp16_tflops * share,
        int8_tops=device.int8_tops * share,
    )
