from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpusq_deploy.benchmarks import environment
from gpusq_deploy.engines.gpu import Gpu, NoGpu


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_gpu", lambda: NoGpu("test"))


def test_this_machine_can_be_described() -> None:
    found = environment.read_environment()
    assert found.cpu
    assert found.cores == len(os.sched_getaffinity(0))
    assert (found.gpu, found.gpu_driver) == (None, None)


def test_the_first_model_name_is_the_cpu(tmp_path: Path) -> None:
    _write(
        tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: Fast: Chip @ 3GHz\nprocessor\t: 1\nmodel name\t: b\n"
    )
    assert environment.read_environment(tmp_path).cpu == "Fast: Chip @ 3GHz"


def test_a_jetson_is_named_by_its_board(tmp_path: Path) -> None:
    _write(tmp_path, "proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 62.50\n")
    _write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
    assert environment.read_environment(tmp_path).cpu == "NVIDIA Jetson AGX Orin Developer Kit"


@pytest.mark.parametrize(("text", "quota"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("", None)])
def test_the_quota_is_read_in_cores(tmp_path: Path, text: str, quota: float | None) -> None:
    _write(tmp_path, "sys/fs/cgroup/cpu.max", text)
    assert environment.read_environment(tmp_path).cpu_quota == quota


@pytest.mark.parametrize(
    ("limits", "locked"),
    [
        ({"cpu0": ("8", "8"), "cpu1": ("8", "8")}, True),
        ({"cpu0": ("8", "8"), "cpu1": ("4", "8")}, False),
        ({"cpu0": ("8", None)}, None),
        ({}, None),
    ],
)
def test_clocks_are_locked_where_every_core_has_one_frequency(
    tmp_path: Path, limits: dict[str, tuple[str, str | None]], locked: bool | None
) -> None:
    for core, (lowest, highest) in limits.items():
        folder = f"sys/devices/system/cpu/{core}/cpufreq"
        _write(tmp_path, f"{folder}/scaling_min_freq", lowest)
        if highest is not None:
            _write(tmp_path, f"{folder}/scaling_max_freq", highest)
    assert environment.read_environment(tmp_path).clocks_locked is locked


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n", "535.104.05"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.3.0  Release Build\n", "540.3.0"),
        (None, None),
    ],
)
def test_the_gpu_is_named_with_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, driver: str | None
) -> None:
    monkeypatch.setattr(environment, "find_gpu", lambda: Gpu("Orin", "8.7"))
    if text is not None:
        _write(tmp_path, "proc/driver/nvidia/version", text)
    found = environment.read_environment(tmp_path)
    assert (found.gpu, found.gpu_driver) == ("Orin", driver)
