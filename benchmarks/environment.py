"""What the machine is, as far as it changes a latency. Nothing that names its owner: no host name, no paths."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from gpusq_deploy.artifacts import Environment
from gpusq_deploy.engines import NoGpu, find_gpu

_ROOT = Path("/")


def read_environment(root: Path = _ROOT) -> Environment:
    """Look at this machine.

    Args:
        root: Where `proc` and `sys` are found; tests point it elsewhere.
    """
    gpu, driver = _gpu(root)
    return Environment(
        cpu=_cpu(root),
        cores=_cores(),
        cpu_quota=_cpu_quota(root),
        os=f"{_system_name()}, {platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpu=gpu,
        gpu_driver=driver,
        clocks_locked=_clocks_locked(root),
    )


def _gpu(root: Path) -> tuple[str | None, str | None]:
    found = find_gpu()
    if isinstance(found, NoGpu):
        return None, None
    # Such as "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 …".
    version = re.search(r"\b\d+\.\d+(\.\d+)?\b", _text(root / "proc/driver/nvidia/version") or "")
    return found.name, version.group() if version else None


def _cpu(root: Path) -> str:
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    # ARM kernels name no model; a Jetson's device tree names the whole board.
    board = _text(root / "proc/device-tree/model")
    return (board or "").strip("\0 \n") or platform.processor() or platform.machine()


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _cpu_quota(root: Path) -> float | None:
    # cgroup v2: "QUOTA PERIOD" in microseconds, or "max PERIOD" where there is no limit.
    words = (_text(root / "sys/fs/cgroup/cpu.max") or "").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _clocks_locked(root: Path) -> bool | None:
    limits = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"))
    pairs = [(_text(folder / "scaling_min_freq"), _text(folder / "scaling_max_freq")) for folder in limits]
    if not pairs or any(None in pair for pair in pairs):
        return None
    return all(lowest == highest for lowest, highest in pairs)


def _system_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
