"""What a machine does at one moment: clocks, temperatures, power, and what holds its clocks down."""

from __future__ import annotations

from gpusq_deploy.artifacts.base import Value


class MachineState(Value):
    """Read between timed windows, never within one. None and empty: unknown, or there is none.

    Attributes:
        cpu_mhz: Of each core that the process may run on, in the kernel's order.
        temperatures_c: By the kernel's name of the zone.
        load: Jobs that ran or waited to run in the last minute, on average.
        gpu_sm_mhz: Of the GPU's multiprocessors; `gpu_memory_mhz` of its memory.
        gpu_temperature_c: The GPU's.
        gpu_power_w: What the GPU draws.
        gpu_limits: What holds the GPU's clocks down, by NVML's names; idling and settings that a person chose aside.
        rails_mw: A Jetson's power by rail.
    """

    cpu_mhz: tuple[float, ...] = ()
    temperatures_c: dict[str, float] = {}  # noqa: RUF012 - msgspec copies it for each value
    load: float | None = None
    gpu_sm_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    gpu_temperature_c: float | None = None
    gpu_power_w: float | None = None
    gpu_limits: tuple[str, ...] = ()
    rails_mw: dict[str, int] = {}  # noqa: RUF012 - msgspec copies it for each value


class ProcessStates(Value):
    """The machine when a process's session was open and nothing timed yet, and right after its last inference.

    Where all repeats ran in one process, it is that one, as repeat 0.
    """

    rebuild: int = 0
    repeat: int
    before: MachineState
    after: MachineState


class EnergySample(Value):
    """What inferences of one batch size took in one process, after all that were timed: run one after another, untimed.

    Attributes:
        inferences: How many.
        seconds: How long they took all together, on the wall.
        joules: The power over that time.
        source: What it is the power of, and who told it.
    """

    batch: int
    rebuild: int = 0
    repeat: int
    inferences: int
    seconds: float
    joules: float
    source: str

    def __post_init__(self) -> None:
        if self.inferences < 1 or not 0 < self.seconds < float("inf") or not 0 <= self.joules < float("inf"):
            raise ValueError("energy needs an inference, a time and joules")
