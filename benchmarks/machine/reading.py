"""The machine's state now."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gpusq_deploy.artifacts import MachineState
from gpusq_deploy.benchmarks.machine.asking import ROOT, number_in, text_of
from gpusq_deploy.benchmarks.machine.jetson import gpu_mhz, is_jetson, rails
from gpusq_deploy.benchmarks.machine.nvidia_smi import read_gpu
from gpusq_deploy.engines import find_bus


def read_state(root: Path = ROOT) -> MachineState:
    """Look at clocks, temperatures and power; where there is a GPU, it takes as long as nvidia-smi does.

    Args:
        root: Where `proc` and `sys` are found; tests point it elsewhere.
    """
    bus = find_bus()
    gpu = None if bus is None else read_gpu(bus)
    return MachineState(
        cpu_mhz=tuple(_cpu_mhz(root)),
        temperatures_c=dict(_temperatures(root)),
        load=_load(root),
        gpu_sm_mhz=gpu_mhz(root) if gpu is None or gpu.sm_mhz is None else gpu.sm_mhz,
        gpu_memory_mhz=None if gpu is None else gpu.memory_mhz,
        gpu_temperature_c=None if gpu is None else gpu.temperature_c,
        gpu_power_w=None if gpu is None else gpu.power_w,
        gpu_limits=() if gpu is None else gpu.limits,
        rails_mw=rails() if is_jetson(root) else {},
    )


def allowed_cores() -> list[int] | None:
    """The logical cores that this process may run on; None where the system doesn't tell."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return None


def _cpu_mhz(root: Path) -> Iterator[float]:
    for core in allowed_cores() or []:
        now = number_in(text_of(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq"))
        if now is not None:
            yield now / 1000


def _temperatures(root: Path) -> Iterator[tuple[str, float]]:
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*"), key=lambda path: path.name):
        name, now = text_of(zone / "type"), number_in(text_of(zone / "temp"))
        # A sensor that is switched off says -256 °C.
        if name is not None and now is not None and now > -200_000:
            yield name.strip(), now / 1000


def _load(root: Path) -> float | None:
    return number_in(text_of(root / "proc/loadavg"))
