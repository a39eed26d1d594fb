"""Was the machine the same throughout? Warnings from what was read before and after each process. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence

from gpusq_deploy.artifacts import Environment, MachineState, ProcessStates, Runs
from gpusq_deploy.text import listed

# A latency follows a clock: beyond this the clock explains most of a budget of 3 %.
CLOCK_CHANGE = 0.02
WARMER_C = 10.0
_STEADY_GOVERNOR = "performance"

_CLOCKS: tuple[tuple[str, Callable[[MachineState], float | None]], ...] = (
    ("the cores' clock", lambda state: statistics.fmean(state.cpu_mhz) if state.cpu_mhz else None),
    ("the GPU's clock", lambda state: state.gpu_sm_mhz),
    ("the GPU memory's clock", lambda state: state.gpu_memory_mhz),
)


def unsteadiness(runs: Runs) -> tuple[str, ...]:
    """Every warning about the machine; none for files without states."""
    return machine_warnings(runs.environment, runs.states)


def machine_warnings(environment: Environment, states: Sequence[ProcessStates]) -> tuple[str, ...]:
    """Warnings of throttling, of clocks that changed between processes, of the governor, and of a rise in temperature.

    Clocks are compared as they were right after each process's last inference: before the first one a GPU idles.

    Args:
        environment: The machine's lasting facts.
        states: Of each process, in the order of measurement.
    """
    return (
        *_throttled(states),
        *(said for name, clock in _CLOCKS for said in _changed(name, [clock(entry.after) for entry in states])),
        *_governed(environment),
        *_warmed(states),
    )


def _throttled(states: Sequence[ProcessStates]) -> Iterator[str]:
    for limit in dict.fromkeys(limit for entry in states for limit in entry.after.gpu_limits):
        count = sum(limit in entry.after.gpu_limits for entry in states)
        yield f"the GPU's clocks were held down ({limit}) at the end of {count} of {len(states)} processes"


def _changed(name: str, clocks: Sequence[float | None]) -> Iterator[str]:
    known = [clock for clock in clocks if clock is not None]
    if len(known) > 1 and max(known) > (1 + CLOCK_CHANGE) * min(known):
        yield (
            f"{name} changed between processes: {min(known):.0f} to {max(known):.0f} MHz, "
            f"{max(known) / min(known) - 1:.1%}; lock it, see docs/benchmarking.md"
        )


def _governed(environment: Environment) -> Iterator[str]:
    if environment.governor not in (None, _STEADY_GOVERNOR) and not environment.clocks_locked:
        yield f"the CPU's frequency governor is {environment.governor}, not {_STEADY_GOVERNOR}: its clock may change"


def _warmed(states: Sequence[ProcessStates]) -> Iterator[str]:
    if not states:
        return
    first, last = states[0].before, states[-1].after
    zones = {**first.temperatures_c, "GPU": first.gpu_temperature_c}
    ends = {**last.temperatures_c, "GPU": last.gpu_temperature_c}
    risen = [
        f"{zone} from {start:.0f} to {end:.0f} C"
        for zone, start in zones.items()
        if start is not None and (end := ends.get(zone)) is not None and end - start > WARMER_C
    ]
    if risen:
        yield f"it grew warmer while measuring: {listed(risen)}; let it warm up first"
