"""What the machine is, as far as it changes a latency. Nothing that names its owner: no host name, no paths."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from gpusq_deploy.artifacts import Environment
from gpusq_deploy.benchmarks.machine.asking import ROOT, number_in, text_of
from gpusq_deploy.benchmarks.machine.jetson import gpu_clocks_locked, is_jetson, power_mode
from gpusq_deploy.benchmarks.machine.nvidia_smi import read_gpu
from gpusq_deploy.benchmarks.machine.reading import allowed_cores
from gpusq_deploy.engines import NoGpu, find_bus, find_gpu


def read_environment(root: Path = ROOT) -> Environment:
    """Look at this machine.

    Args:
        root: Where `proc` and `sys` are found; tests point it elsewhere.
    """
    gpu, driver = _gpu(root)
    told = None if gpu is None else read_gpu(find_bus())
    randomised = number_in(text_of(root / "proc/sys/kernel/randomize_va_space"))
    return Environment(
        cpu=_cpu(root),
        cores=_cores(),
        cpu_quota=_cpu_quota(root),
        os=f"{_system_name()}, {platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpu=gpu,
        gpu_driver=driver if driver is not None or told is None else told.driver,
        clocks_locked=_clocks_locked(root),
        numa_nodes=len(list(root.glob("sys/devices/system/node/node[0-9]*"))) or None,
        allowed_nodes=_status(root, "Mems_allowed_list"),
        allowed_cpus=_status(root, "Cpus_allowed_list"),
        address_randomisation=None if randomised is None else int(randomised),
        huge_pages=_huge_pages(root),
        governor=_governor(root),
        gpu_power_limit_w=None if told is None else told.power_limit_w,
        gpu_persistence=None if told is None else told.persistence,
        power_mode=power_mode() if is_jetson(root) else None,
        gpu_clocks_locked=gpu_clocks_locked(root),
    )


def _gpu(root: Path) -> tuple[str | None, str | None]:
    found = find_gpu()
    if isinstance(found, NoGpu):
        return None, None
    # Such as "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 …".
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", text_of(root / "proc/driver/nvidia/version") or "")
    return found.name, version.group() if version else None


def _cpu(root: Path) -> str:
    for line in (text_of(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    # ARM kernels name no model; a Jetson's device tree names the whole board.
    board = text_of(root / "proc/device-tree/model")
    return (board or "").strip("\0 \n") or platform.processor() or platform.machine()


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _cpu_quota(root: Path) -> float | None:
    # cgroup v2: "QUOTA PERIOD" in microseconds, or "max PERIOD" where there is no limit.
    words = (text_of(root / "sys/fs/cgroup/cpu.max") or "").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _clocks_locked(root: Path) -> bool | None:
    limits = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"))
    pairs = [(text_of(folder / "scaling_min_freq"), text_of(folder / "scaling_max_freq")) for folder in limits]
    if not pairs or any(None in pair for pair in pairs):
        return None
    return all(lowest == highest for lowest, highest in pairs)


def _status(root: Path, field: str) -> str | None:
    # Such as "Cpus_allowed_list:\t0-3,8".
    found = re.search(rf"^{field}:\s*(\S+)$", text_of(root / "proc/self/status") or "", re.MULTILINE)
    return None if found is None else found[1]


def _huge_pages(root: Path) -> str | None:
    # The kernel puts the choice in brackets: "always [madvise] never".
    found = re.search(r"\[(\w+)\]", text_of(root / "sys/kernel/mm/transparent_hugepage/enabled") or "")
    return None if found is None else found[1]


def _governor(root: Path) -> str | None:
    cores = allowed_cores()
    if cores is None:
        return None
    files = (text_of(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor") for core in cores)
    return ", ".join(sorted({text.strip() for text in files if text is not None})) or None


def _system_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
