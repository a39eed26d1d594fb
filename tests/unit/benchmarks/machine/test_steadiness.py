"""Warnings about the machine, and which of its settings keep two files apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from gpusq_deploy.artifacts import MachineState, ProcessStates, Runs
from gpusq_deploy.benchmarks.comparable import obstacles, remarks
from gpusq_deploy.benchmarks.machine.steadiness import machine_warnings, unsteadiness
from gpusq_deploy.benchmarks.report import text_from_runs

MakeRuns = Callable[[dict[int, Any]], Runs]


@pytest.fixture
def runs(make_runs: MakeRuns) -> Runs:
    return make_runs({1: np.full((5, 10), 1.0)})


def states(*after: MachineState, before: MachineState | None = None) -> tuple[ProcessStates, ...]:
    start = MachineState() if before is None else before
    return tuple(ProcessStates(repeat=number, before=start, after=state) for number, state in enumerate(after))


def with_environment(runs: Runs, **changes: object) -> Runs:
    return msgspec.structs.replace(runs, environment=msgspec.structs.replace(runs.environment, **changes))


def test_a_steady_machine_and_an_older_file_warn_of_nothing(runs: Runs) -> None:
    steady = MachineState(cpu_mhz=(2000.0, 2010.0), gpu_sm_mhz=1410, temperatures_c={"cpu": 50.0})
    assert unsteadiness(runs) == ()
    assert machine_warnings(runs.environment, states(steady, steady, before=steady)) == ()


def test_throttling_is_counted_by_its_cause(runs: Runs) -> None:
    capped, hot = MachineState(gpu_limits=("power cap",)), MachineState(gpu_limits=("power cap", "power brake"))
    assert machine_warnings(runs.environment, states(capped, MachineState(), hot)) == (
        "the GPU's clocks were held down (power cap) at the end of 2 of 3 processes",
        "the GPU's clocks were held down (power brake) at the end of 1 of 3 processes",
    )


def test_clocks_that_changed_between_processes_are_told_and_idle_ones_before_are_not(runs: Runs) -> None:
    idle = MachineState(gpu_sm_mhz=210, cpu_mhz=(800.0,))
    fast, slow = MachineState(gpu_sm_mhz=1410, cpu_mhz=(2000.0,)), MachineState(gpu_sm_mhz=1380, cpu_mhz=(2020.0,))
    (warning,) = machine_warnings(runs.environment, states(fast, slow, before=idle))
    assert warning.startswith("the GPU's clock changed between processes: 1380 to 1410 MHz, 2.2%")


def test_a_governor_that_changes_the_clock_is_told_unless_it_can_not(runs: Runs) -> None:
    (warning,) = unsteadiness(with_environment(runs, governor="schedutil"))
    assert warning == "the CPU's frequency governor is schedutil, not performance: its clock may change"
    assert unsteadiness(with_environment(runs, governor="schedutil", clocks_locked=True)) == ()
    assert unsteadiness(with_environment(runs, governor="performance")) == ()


def test_a_rise_in_temperature_is_told_by_zone(runs: Runs) -> None:
    cold = MachineState(temperatures_c={"cpu": 40.0, "soc": 45.0, "gone": 1.0}, gpu_temperature_c=35)
    warm = MachineState(temperatures_c={"cpu": 55.4, "soc": 54.0}, gpu_temperature_c=61)
    (warning,) = machine_warnings(runs.environment, states(cold, warm, before=cold))
    assert warning == (
        "it grew warmer while measuring: cpu from 40 to 55 C and GPU from 35 to 61 C; let it warm up first"
    )


def test_warnings_stand_in_the_table_and_with_the_comparison(runs: Runs) -> None:
    warned = with_environment(runs, governor="powersave")
    (warning,) = unsteadiness(warned)
    assert warning in text_from_runs(warned)
    assert f"head: {warning}" in remarks(runs, warned)


@pytest.mark.parametrize(
    ("field", "base", "head", "reason"),
    [
        ("governor", "performance", "powersave", "CPU frequency governor: performance in base, powersave in head"),
        ("power_mode", "MAXN", "15W", "power mode: MAXN in base, 15W in head"),
        ("address_randomisation", 2, 0, "randomisation of addresses: 2 in base, 0 in head"),
        ("huge_pages", "always", "never", "transparent huge pages: always in base, never in head"),
        ("numa_nodes", 1, 2, "NUMA nodes: 1 in base, 2 in head"),
        ("allowed_nodes", "0", "1", "NUMA nodes that the process may use: 0 in base, 1 in head"),
        ("gpu_power_limit_w", 700.0, 400.0, "GPU power limit in W: 700.0 in base, 400.0 in head"),
        ("gpu_clocks_locked", True, False, "GPU clocks locked: True in base, False in head"),
        ("clocks_locked", True, False, "CPU clocks locked: True in base, False in head"),
    ],
)
def test_settings_that_change_a_latency_keep_files_apart(
    runs: Runs, field: str, base: object, head: object, reason: str
) -> None:
    assert obstacles(with_environment(runs, **{field: base}), with_environment(runs, **{field: head})) == (reason,)
    # An older file doesn't know.
    assert obstacles(runs, with_environment(runs, **{field: head})) == ()


@pytest.mark.parametrize(
    ("field", "base", "head", "said"),
    [
        ("allowed_cpus", "0-1", "2-3", "cores that the process may use: 0-1 in base, 2-3 in head"),
        ("gpu_persistence", True, False, "GPU persistence mode: True in base, False in head"),
    ],
)
def test_settings_that_seldom_matter_are_said(runs: Runs, field: str, base: object, head: object, said: str) -> None:
    sides = with_environment(runs, **{field: base}), with_environment(runs, **{field: head})
    assert obstacles(*sides) == ()
    assert said in remarks(*sides)
