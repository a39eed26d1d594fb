"""What nvidia-smi says of the GPU that sessions run on.

The names of fields are those of `nvidia-smi --help-query-gpu`, the bits of `clocks_event_reasons.active` those of NVML:
https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
"""

from __future__ import annotations

from typing import NamedTuple

from gpusq_deploy.benchmarks.machine.asking import Ask, ask, number_in

_FIELDS = (
    "pci.bus_id",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
    "persistence_mode",
)
# Renamed in driver 535; a name that a driver doesn't know makes the whole query fail.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# Not here: idling (0x1), and clocks that a person set (0x2, 0x100) or shares with other GPUs (0x10).
_LIMITS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class GpuReport(NamedTuple):
    """MHz, °C, W; None where the GPU doesn't tell."""

    bus: str
    driver: str | None
    sm_mhz: float | None
    memory_mhz: float | None
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None
    persistence: bool | None
    limits: tuple[str, ...]


def read_gpu(bus: str | None, run: Ask = ask) -> GpuReport | None:
    """Ask for one GPU.

    Args:
        bus: Its place on the PCI bus as CUDA writes it, such as "0000:65:00.0"; None: the only one.
        run: Who runs nvidia-smi.

    Returns:
        None where nvidia-smi isn't there, or doesn't know the GPU, or there are several and it isn't said which.
    """
    for reasons in _REASONS:
        text = run(["nvidia-smi", f"--query-gpu={','.join((*_FIELDS, reasons))}", "--format=csv,noheader,nounits"])
        if text is not None:
            return _of_bus(parse_gpus(text), bus)
    return None


def parse_gpus(text: str) -> tuple[GpuReport, ...]:
    """One report for each line that has all fields, without units."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return tuple(_report(row) for row in rows if len(row) == len(_FIELDS) + 1)


def limits_of(mask: str) -> tuple[str, ...]:
    """What holds the clocks down, of a bit mask such as `0x0000000000000004`; nothing where it isn't told."""
    try:
        bits = int(mask, 16)
    except ValueError:
        return ()
    return tuple(name for bit, name in _LIMITS.items() if bits & bit)


def _report(row: list[str]) -> GpuReport:
    bus, driver, sm, memory, temperature, power, limit, persistence, reasons = row
    return GpuReport(
        bus=bus,
        driver=driver if number_in(driver) is not None else None,
        sm_mhz=number_in(sm),
        memory_mhz=number_in(memory),
        temperature_c=number_in(temperature),
        power_w=number_in(power),
        power_limit_w=number_in(limit),
        persistence={"Enabled": True, "Disabled": False}.get(persistence),
        limits=limits_of(reasons),
    )


def _of_bus(reports: tuple[GpuReport, ...], bus: str | None) -> GpuReport | None:
    if bus is None:
        return reports[0] if len(reports) == 1 else None
    # nvidia-smi writes the domain in eight digits, CUDA in four.
    return next((report for report in reports if report.bus.lower().endswith(bus.lower())), None)
