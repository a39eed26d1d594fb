"""The runs: one model measured on one machine, with every raw sample."""

from __future__ import annotations

import math
from typing import Literal

from gpusq_deploy.artifacts.base import Value


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
    cores' worth of time. `clocks_locked` is known for the CPU alone: every core's lowest and highest allowed
    frequency are the same.
    """

    cpu: str
    cores: int
    cpu_quota: float | None
    os: str
    python: str
    gpu: str | None
    gpu_driver: str | None
    clocks_locked: bool | None


class MeasureSettings(Value):
    """How samples are taken.

    Each of `repeats` opens a fresh session and, for every batch, runs `warmup` inferences that don't count and
    `iterations` that do. Order "abba": every second repeat takes the batches backwards. `inputs` names what is fed;
    `seed` makes up the standard-normal ones. `isolation` is where a repeat's session is opened: in the one process of
    all, in a fresh process, or in a fresh process beside one of the other model, in turns with it.
    """

    warmup: int
    iterations: int
    repeats: int
    order: Literal["abba"] = "abba"
    inputs: Literal["standard-normal", "given"] = "standard-normal"
    seed: int = 0
    isolation: Literal["session", "process", "pair"] = "session"

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.iterations < 1 or self.repeats < 1 or self.seed < 0:
            raise ValueError("needs warmup >= 0, iterations >= 1, repeats >= 1 and seed >= 0")


class Series(Value):
    """Samples of one batch size in one repeat, in the order they were taken: milliseconds per inference, unrounded.

    `cpu_ms` are the same inferences without waiting for a core: CPU time, or the wall time of one that waited of its
    own accord. Empty where that wasn't measured.
    """

    batch: int
    repeat: int
    warmup: int
    samples_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.batch < 1 or self.repeat < 0 or self.warmup < 0:
            raise ValueError("a series needs batch >= 1, repeat >= 0 and warmup >= 0")
        if not self.samples_ms:
            raise ValueError(f"batch {self.batch}, repeat {self.repeat}: no samples")
        if self.cpu_ms and len(self.cpu_ms) != len(self.samples_ms):
            raise ValueError(f"batch {self.batch}, repeat {self.repeat}: every sample has a CPU time, or none")
        if not all(math.isfinite(sample) and sample > 0 for sample in (*self.samples_ms, *self.cpu_ms)):
            raise ValueError(f"batch {self.batch}, repeat {self.repeat}: samples must be finite and positive")


class Runs(Value):
    """Everything measured in one go. `series` stands in the order of measurement.

    `outputs` says whether they were compared with the model's on the CPU before the first sample; "reference" is ONNX
    Runtime itself, and None a file from before that was put down.

    Invariant: each batch has each repeat 0…repeats-1 exactly once, with exactly `iterations` samples, so that a file
    from which somebody dropped the outliers is refused. In pairs (`isolation`) the first repeats may be shorter; how
    long each is stands in the gate's result.
    """

    schema: Literal["gpusq.runs/1"] = "gpusq.runs/1"
    created: str
    model: str
    model_digest: str
    runtime: RuntimeInfo
    environment: Environment
    settings: MeasureSettings
    outputs: Literal["reference", "compared", "not compared"] | None = None
    notes: tuple[str, ...] = ()
    series: tuple[Series, ...]

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError("runs need at least one series")
        repeats = [entry.repeat for entry in self.series]
        if repeats != sorted(repeats):
            raise ValueError("repeats must be ascending: series stand in the order of measurement")
        wanted = list(range(self.settings.repeats))
        for batch in self.batches:
            found = [entry.repeat for entry in self.series if entry.batch == batch]
            if found != wanted:
                raise ValueError(f"batch {batch} needs repeats {wanted}, not {found}")
        for entry in self.series:
            shorter = self.settings.isolation == "pair" and len(entry.samples_ms) < self.settings.iterations
            if len(entry.samples_ms) != self.settings.iterations and not shorter:
                where = f"batch {entry.batch}, repeat {entry.repeat}"
                raise ValueError(f"{where}: {len(entry.samples_ms)} samples of {self.settings.iterations}")

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes, ascending."""
        return tuple(sorted({entry.batch for entry in self.series}))

    def of_batch(self, batch: int) -> tuple[Series, ...]:
        """Series of one batch size, by repeat."""
        return tuple(entry for entry in self.series if entry.batch == batch)
