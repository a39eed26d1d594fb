"""What one reads of runs: a few numbers per batch size, derived from the raw samples and never stored with them."""

from __future__ import annotations

import numpy as np

from gpusq_deploy.artifacts import Runs, Value
from gpusq_deploy.benchmarks.statistics import (
    Samples,
    coefficient_of_variation,
    instability,
    median,
    tail,
    throughput,
)


class BatchSummary(Value):
    """One batch size over all repeats: milliseconds per inference, samples (images) per second.

    A tail that too few samples can't support is None; `remarks` says why, and warns of unstable latencies.
    """

    batch: int
    samples: int
    median_ms: float
    p90_ms: float | None
    p99_ms: float | None
    throughput: float
    variation: float
    remarks: tuple[str, ...]


def samples_of(runs: Runs, batch: int) -> Samples:
    """Raw samples of one batch size in ms: [repeats, iterations]; [builds, repeats, iterations] of several builds."""
    samples = np.array([entry.samples_ms for entry in runs.of_batch(batch)], dtype=np.float64)
    if runs.builds is None:
        return samples
    return samples.reshape(runs.rebuilds, runs.settings.repeats, -1)


def summarise(runs: Runs) -> tuple[BatchSummary, ...]:
    """One summary per batch size, ascending."""
    return tuple(_of_batch(batch, samples_of(runs, batch)) for batch in runs.batches)


def _of_batch(batch: int, samples: Samples) -> BatchSummary:
    p90, p99 = tail(samples, 90), tail(samples, 99)
    said = (p90.reason, p99.reason, instability(samples))
    return BatchSummary(
        batch=batch,
        samples=samples.size,
        median_ms=median(samples),
        p90_ms=p90.value,
        p99_ms=p99.value,
        throughput=throughput(batch, samples),
        variation=coefficient_of_variation(samples),
        remarks=tuple(remark for remark in said if remark is not None),
    )
