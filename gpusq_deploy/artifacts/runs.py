"""The runs: one model measured on one machine, with every raw sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.machine_state import EnergySample, ProcessStates


class RuntimeInfo(Value):
    """What ran the model, and why that and not another. `threads` is None where the runtime decides.

    `cuda_graph` says that inferences were launched as one captured CUDA graph,
    `cuda_api` which package called the CUDA driver, and its version; None on a CPU, and in older files.
    """

    name: str
    version: str
    device: str
    threads: int | None = None
    reason: str
    cuda_graph: bool = False
    cuda_api: str | None = None


class Environment(Value):
    """The machine, as far as it changes a latency. None means "unknown" or, for the GPU, "none found".

    `cores` counts the logical cores that this process may run on; `cpu_quota` is the limit of its control group in
    cores' worth of time. `clocks_locked` is of the CPU: every core's lowest and highest allowed frequency are the same.

    Attributes:
        numa_nodes: How many the machine has; `allowed_nodes` lists those that this process may take memory from, and
            `allowed_cpus` the logical cores that it may run on, both as the kernel writes them ("0-3,8").
        address_randomisation: The kernel's 0 (off), 1 or 2 (stack, libraries and heap).
        huge_pages: When the kernel backs memory with huge pages unasked: "always", "madvise" or "never".
        governor: Who chooses the cores' frequency; several are joined by a comma.
        gpu_power_limit_w: The GPU's own limit.
        gpu_persistence: The driver stays loaded while nobody uses the GPU.
        power_mode: A Jetson's, by name.
        gpu_clocks_locked: A Jetson's lowest and highest allowed GPU frequency are the same, as by jetson_clocks.
    """

    cpu: str
    cores: int
    cpu_quota: float | None
    os: str
    python: str
    gpu: str | None
    gpu_driver: str | None
    clocks_locked: bool | None
    numa_nodes: int | None = None
    allowed_nodes: str | None = None
    allowed_cpus: str | None = None
    address_randomisation: int | None = None
    huge_pages: str | None = None
    governor: str | None = None
    gpu_power_limit_w: float | None = None
    gpu_persistence: bool | None = None
    power_mode: str | None = None
    gpu_clocks_locked: bool | None = None


class MeasureSettings(Value):
    """How samples are taken.

    Each of `repeats` opens a fresh session and, for every batch, runs `warmup` inferences that don't count and
    `iterations` that do. Order "abba": every second repeat takes the batches backwards. `inputs` names what is fed;
    `seed` makes up the standard-normal ones. `isolation` is where a repeat's session is opened: in the one process of
    all, in a fresh process, or in a fresh process beside one of the other model, in turns with it. `energy_seconds` is
    for how long each process ran every batch size again, untimed, to tell its energy; None: it didn't.
    """

    warmup: int
    iterations: int
    repeats: int
    order: Literal["abba"] = "abba"
    inputs: Literal["standard-normal", "given"] = "standard-normal"
    seed: int = 0
    isolation: Literal["session", "process", "pair"] = "session"
    energy_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.iterations < 1 or self.repeats < 1 or self.seed < 0:
            raise ValueError("needs warmup >= 0, iterations >= 1, repeats >= 1 and seed >= 0")
        if self.energy_seconds is not None and not 0 < self.energy_seconds < float("inf"):
            raise ValueError("energy needs a time that is positive and finite")


class EngineRebuild(Value):
    """One of several builds of an engine. `layers_digest` is of its layers with their kernels, in order."""

    engine_digest: str
    layers_digest: str
    build_seconds: float


class EngineBuilds(Value):
    """An engine that was built several times for this measurement, always anew: no kernel timings were kept.

    Attributes:
        target: The GPU that it was built for, by name.
        version: The builder's.
        options: What the builder was asked, as `--engine-option` takes it.
        sparse: Whether sparse kernels were allowed.
        engines: The builds, by number.
    """

    target: str
    version: str
    options: tuple[str, ...]
    sparse: bool
    engines: tuple[EngineRebuild, ...]

    def __post_init__(self) -> None:
        if len(self.engines) < 2:
            raise ValueError("several builds are at least two")


class Series(Value):
    """Samples of one batch size in one repeat, in the order they were taken: milliseconds per inference, unrounded.

    `rebuild` is the number of the build that ran, where there are several.
    `cpu_ms` are the same inferences without waiting for a core: CPU time, or the wall time of one that waited of its
    own accord. Empty where that wasn't measured.
    """

    batch: int
    rebuild: int = 0
    repeat: int
    warmup: int
    samples_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.batch < 1 or self.repeat < 0 or self.rebuild < 0 or self.warmup < 0:
            raise ValueError("a series needs batch >= 1, repeat >= 0, rebuild >= 0 and warmup >= 0")
        if not self.samples_ms:
            raise ValueError(f"batch {self.batch}, repeat {self.repeat}: no samples")
        if self.cpu_ms and len(self.cpu_ms) != len(self.samples_ms):
            raise ValueError(f"batch {self.batch}, repeat {self.repeat}: every sample has a CPU time, or none")
        if not all(math.isfinite(sample) and sample > 0 for sample in (*self.samples_ms, *self.cpu_ms)):
            raise ValueError(f"batch {self.batch}, repeat {self.repeat}: samples must be finite and positive")


class Runs(Value):
    """Everything measured in one go. `series` stands in the order of measurement.

    `outputs` says whether they were compared with the model's on the CPU before the first sample; "reference" is ONNX
    Runtime itself, and None a file from before that was put down. `builds` is there where an engine was built several
    times: `model_digest` is then that of the ONNX model. `states` is the machine before and after each process; files
    from before that was put down have none. `energy` is there where it was asked for.

    Invariant: each batch has each repeat 0…repeats-1 of each build exactly once, with exactly `iterations` samples, so
    that a file from which somebody dropped the outliers is refused. In pairs (`isolation`) the first repeats may be
    shorter; how long each is stands in the gate's result.
    """

    schema: Literal["gpusq.runs/1"] = "gpusq.runs/1"
    created: str
    model: str
    model_digest: str
    runtime: RuntimeInfo
    environment: Environment
    settings: MeasureSettings
    outputs: Literal["reference", "compared", "not compared"] | None = None
    builds: EngineBuilds | None = None
    notes: tuple[str, ...] = ()
    states: tuple[ProcessStates, ...] = ()
    energy: tuple[EnergySample, ...] = ()
    series: tuple[Series, ...]

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError("runs need at least one series")
        repeats = [entry.repeat for entry in self.series]
        if repeats != sorted(repeats):
            raise ValueError("repeats must be ascending: series stand in the order of measurement")
        wanted = [(rebuild, repeat) for rebuild in range(self.rebuilds) for repeat in range(self.settings.repeats)]
        for batch in self.batches:
            found = [(entry.rebuild, entry.repeat) for entry in self.of_batch(batch)]
            if found != wanted:
                what = "repeats" if self.builds is None else "(build, repeat)"
                raise ValueError(f"batch {batch} needs {what} {self._numbers(wanted)}, not {self._numbers(found)}")
        for entry in self.series:
            shorter = self.settings.isolation == "pair" and len(entry.samples_ms) < self.settings.iterations
            if len(entry.samples_ms) != self.settings.iterations and not shorter:
                where = f"batch {entry.batch}, repeat {entry.repeat}"
                raise ValueError(f"{where}: {len(entry.samples_ms)} samples of {self.settings.iterations}")

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes, ascending."""
        return tuple(sorted({entry.batch for entry in self.series}))

    @property
    def rebuilds(self) -> int:
        """How many builds were measured."""
        return 1 if self.builds is None else len(self.builds.engines)

    def of_batch(self, batch: int) -> tuple[Series, ...]:
        """Series of one batch size, by build and repeat."""
        chosen = (entry for entry in self.series if entry.batch == batch)
        return tuple(sorted(chosen, key=lambda entry: (entry.rebuild, entry.repeat)))

    def _numbers(self, pairs: list[tuple[int, int]]) -> Sequence[object]:
        return pairs if self.builds is not None else [repeat for _, repeat in pairs]
