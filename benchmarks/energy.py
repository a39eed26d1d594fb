"""What inferences take of energy: run one after another for some seconds, after all that were timed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from typing import NamedTuple

from gpusq_deploy.artifacts import EnergySample, Runs, Series
from gpusq_deploy.benchmarks.machine.power import PowerSampler, PowerSource, joules
from gpusq_deploy.benchmarks.worker_process import WorkerProcess


class EnergyRequest(NamedTuple):
    """For how long, and who tells the power."""

    seconds: float
    source: PowerSource


def take_energy(worker: WorkerProcess, timed: Series, request: EnergyRequest) -> EnergySample:
    """Run a process's model at the batch size of a series that it was timed at before.

    Raises:
        GpusqError: The model fails, or nobody tells the power often enough.
    """
    count = math.ceil(1000 * request.seconds / statistics.median(timed.samples_ms))
    with PowerSampler(request.source) as sampler:
        sampler.wait()
        start = time.monotonic()
        worker.take(timed.batch, count)
        end = time.monotonic()
        samples = sampler.samples()
    return EnergySample(
        batch=timed.batch,
        rebuild=timed.rebuild,
        repeat=timed.repeat,
        inferences=count,
        seconds=end - start,
        joules=joules(samples, start, end),
        source=request.source.said,
    )


def energy_lines(runs: Runs) -> Iterator[str]:
    """By batch size, the median over the processes; nothing where it wasn't asked for."""
    for batch in sorted({sample.batch for sample in runs.energy}):
        samples = [sample for sample in runs.energy if sample.batch == batch]
        each = sorted(sample.joules / sample.inferences for sample in samples)
        watts = statistics.median(sample.joules / sample.seconds for sample in samples)
        yield (
            f"batch {batch}: {statistics.median(each):.4g} J an inference ({each[0]:.4g} to {each[-1]:.4g} in "
            f"{len(each)} processes), {watts:.4g} W, idle power included: {samples[0].source}"
        )
