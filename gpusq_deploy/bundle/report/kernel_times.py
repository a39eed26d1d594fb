"""What is known of an engine's kernels one by one: their work at the optimal batch, and the time predicted of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from gpusq_deploy.artifacts import BuiltEngine, KernelWork
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.engines import (
    MeasuredKernels,
    device_of_target,
    kernel_works,
    kernels_of,
    load_fitted,
    predicted_microseconds,
    works_by_kernel,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import counted

_LONGEST = 3
# Whose engine for the optimal batch alone a build compares with.
_SIZED = "tensorrt-rtx"


def kernel_works_of(bundle: Bundle, engine: BuiltEngine) -> tuple[dict[str, KernelWork], str]:
    """The work of an engine's kernels by their names, and why that isn't known of all of them; empty where it is.

    Args:
        bundle: It is in; its receipt has the work where a dynamic batch hides sizes.
        engine: Itself.
    """
    works, unknown = all_works(bundle, engine)
    if unknown:
        return {}, unknown
    kernels = kernels_of(engine.engine_layers)
    found = works_by_kernel(kernels, works)
    lost = len(kernels) - len(found)
    return found, f"{lost} of {len(kernels)} kernels aren't in the engine of the optimal batch alone" if lost else ""


def all_works(bundle: Bundle, engine: BuiltEngine) -> tuple[tuple[KernelWork, ...], str]:
    """The work of an engine's kernels at the optimal batch alone, where they may be others; and why it isn't known."""
    kernels = kernels_of(engine.engine_layers)
    if not kernels:
        return (), "the receipt lists no kernel"
    if not bundle.manifest.batch.static:
        if engine.backend != _SIZED:
            return (), f"the batch is dynamic, and sizes are known of engines of {_SIZED} alone"
        lost = "the batch is dynamic, and the receipt doesn't hold its kernels' sizes: build again with tensorrt-rtx"
        return bundle.receipt.works, "" if bundle.receipt.works else lost
    try:
        return kernel_works(kernels), ""
    except GpusqError as error:
        return (), error.what


def predicted_kernel_times(engine: BuiltEngine, works: Mapping[str, KernelWork]) -> dict[str, float]:
    """Microseconds that each kernel is predicted to take, of those that can be: see docs/predict.md."""
    device = device_of_target(engine.target)
    return {} if device is None else predicted_microseconds(works, device, load_fitted())


class KernelTimes(NamedTuple):
    """Microseconds of an engine's kernels by name, predicted and measured, and sentences about both."""

    predicted: Mapping[str, float]
    measured: Mapping[str, float]
    texts: tuple[str, ...]


def times_of_kernels(
    bundle: Bundle, engine: BuiltEngine, measured: MeasuredKernels | None = None, *, profiler: str = "the profiler"
) -> KernelTimes:
    """What is known of the times of an engine's kernels.

    Args:
        bundle: It is in.
        engine: Itself.
        measured: What a profiler saw of it.
        profiler: Who that was.
    """
    works, unsized = kernel_works_of(bundle, engine)
    predicted = predicted_kernel_times(engine, works)
    texts = [*_predicted_text(bundle, engine, predicted, unsized)]
    if measured is not None:
        texts += _measured_text(measured, predicted, profiler)
    return KernelTimes(predicted, {} if measured is None else measured.times, tuple(texts))


def _predicted_text(bundle: Bundle, engine: BuiltEngine, predicted: Mapping[str, float], unsized: str) -> Iterator[str]:
    device = device_of_target(engine.target)
    if device is None or not predicted:
        return
    batch = bundle.manifest.batch.optimum
    dense = ", products as if dense" if bundle.plan.sparse_asked else ""
    yield f"Predicted for {device.gpu} at batch {batch}, not measured{dense}: {_most(predicted)}"
    if unsized:
        yield f"Without a prediction: {unsized}"


def _measured_text(measured: MeasuredKernels, predicted: Mapping[str, float], profiler: str) -> Iterator[str]:
    if measured.times:
        ratios = [time / predicted[name] for name, time in measured.times.items() if predicted.get(name)]
        ratio = f"; measured / predicted: {statistics.median(ratios):.2f}, median of {len(ratios)}" if ratios else ""
        yield f"Measured by {profiler}: {_most(measured.times)}{ratio}"
    if measured.unknown:
        yield f"Without a measurement: {measured.unknown}"


def _most(times: Mapping[str, float]) -> str:
    """All of them together, and the longest."""
    total = sum(times.values())
    longest = sorted(times, key=lambda name: -times[name])[:_LONGEST]
    said = ", ".join(f"{name} {times[name]:.1f} µs ({times[name] / total:.0%})" for name in longest)
    return f"{counted(len(times), 'kernel')} in {total / 1e3:.3f} ms, most in {said}"
