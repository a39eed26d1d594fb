"""How long each kernel of an engine took, from a profiler's file, where that can be told.

    trtexec --loadEngine=ENGINE --dumpProfile --separateProfileRun --exportProfile=FILE
        JSON: [{"count": inferences}, {"name", "timeMs", "averageMs", "medianMs", "percentage"}, …], as
        samples/common/sampleReporting.cpp of NVIDIA/TensorRT writes it. Names are the engine's layers: exact.
    nsys stats --report cuda_gpu_trace --format csv
        A row for each launch with `Start (ns)` and `Duration (ns)`, in order of their start.
    nsys stats --report cuda_gpu_kern_sum --format csv
        A row for each kernel with `Total Time (ns)` and `Instances`.

nsys names kernels, not layers. A kernel's launches are told apart by their order where a trace repeats one sequence in
every inference, with one launch for each kernel of the engine; else only a kernel that a single layer of the engine
names, launched once in each inference, has a time.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from gpusq_deploy.artifacts import EngineLayer
from gpusq_deploy.engines.kernel_names import COPIES, profile_text, table_of
from gpusq_deploy.engines.layer_classes import STUB
from gpusq_deploy.engines.prediction.kernel_works import kernels_of
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import counted

_NS_OF_US = 1e3


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfiledTimes:
    """What a profiler's file says.

    Attributes:
        names: Whether they are the engine's layers, or kernels.
        ordered: Whether `times` are single launches in order; else each is of one name in one inference.
        times: Names and microseconds.
        inferences: How many were traced.
    """

    names: Literal["layers", "kernels"]
    ordered: bool
    times: tuple[tuple[str, float], ...]
    inferences: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredKernels:
    """Microseconds of an engine's kernels by their names, and why that is not known of others; empty where it is."""

    times: dict[str, float]
    unknown: str


class _TrtexecLayer(msgspec.Struct, rename="camel"):
    count: int | None = None
    name: str | None = None
    average_ms: float | None = None
    median_ms: float | None = None


def read_kernel_times(path: Path, inferences: int) -> ProfiledTimes | None:
    """Times from a profiler's file; None where it holds names alone.

    Args:
        path: One of the forms of this module.
        inferences: How many inferences were traced, for nsys; trtexec's file has averages.

    Raises:
        GpusqError: The file can't be read, or holds times that aren't numbers.
    """
    text = profile_text(path)
    # JSON's list, which no CSV begins with, and of names only those of copies.
    if text.lstrip().startswith("[") and not text.lstrip().startswith(COPIES):
        return _from_trtexec(text, path)
    try:
        return _from_nsys(text, inferences)
    except ValueError as error:
        raise GpusqError(f"a time of the profile is no number: {error}", place=str(path)) from error


def measured_kernels(layers: Sequence[EngineLayer], seen: ProfiledTimes) -> MeasuredKernels:
    """The time of each kernel of an engine, where the profile tells it.

    Args:
        layers: The engine's, in the builder's order.
        seen: What the profiler saw of it.
    """
    # A `shape_call` runs on the host.
    kernels = [kernel for kernel in kernels_of(layers) if kernel.inputs or kernel.outputs or kernel.constants]
    if seen.names == "layers":
        by_name = dict(seen.times)
        return _told(kernels, {kernel.name: by_name[kernel.name] for kernel in kernels if kernel.name in by_name})
    if seen.ordered and (found := _by_order(kernels, seen)) is not None:
        return MeasuredKernels(times=found, unknown="")
    return _told(kernels, _by_kernel(kernels, seen))


def _told(kernels: Sequence[EngineLayer], found: dict[str, float]) -> MeasuredKernels:
    lost = len(kernels) - len(found)
    said = "their names aren't in the profile, or several launches share one"
    return MeasuredKernels(times=found, unknown=f"{lost} of {counted(len(kernels), 'kernel')}: {said}" if lost else "")


def _from_trtexec(text: str, path: Path) -> ProfiledTimes:
    try:
        entries = msgspec.json.decode(text, type=list[_TrtexecLayer])
    except msgspec.MsgspecError as error:
        raise GpusqError(
            f"not a profile that trtexec --exportProfile wrote: {error}", place=str(path), hint="see docs/receipts.md"
        ) from error
    times = [
        (entry.name, 1e3 * time)
        for entry in entries
        if entry.name is not None
        if (time := entry.average_ms if entry.median_ms is None else entry.median_ms) is not None
    ]
    if not times:
        raise GpusqError("the profile has no layer with a time", place=str(path), hint="see docs/receipts.md")
    counts = [entry.count for entry in entries if entry.count is not None]
    return ProfiledTimes(names="layers", ordered=False, times=tuple(times), inferences=max(counts, default=1))


def _from_nsys(text: str, inferences: int) -> ProfiledTimes | None:
    rows = [row for row in table_of(text) or () if row["Name"] and not row["Name"].startswith(COPIES)]
    columns = set(rows[0]) if rows else set[str]()
    if {"Start (ns)", "Duration (ns)"} <= columns:
        launches = sorted(rows, key=lambda row: float(row["Start (ns)"]))
        times = tuple((row["Name"], float(row["Duration (ns)"]) / _NS_OF_US) for row in launches)
        return ProfiledTimes(names="kernels", ordered=True, times=times, inferences=inferences)
    if {"Total Time (ns)", "Instances"} <= columns:
        # Launched otherwise than once in each inference, a kernel's time can't be one layer's.
        times = tuple(
            (row["Name"], float(row["Total Time (ns)"]) / inferences / _NS_OF_US)
            for row in rows
            if int(row["Instances"]) == inferences
        )
        return ProfiledTimes(names="kernels", ordered=False, times=times, inferences=inferences)
    return None


def _by_order(kernels: Sequence[EngineLayer], seen: ProfiledTimes) -> dict[str, float] | None:
    """Medians by place in the sequence that every inference repeats; None where it doesn't, or fits another engine."""
    count = len(kernels)
    if count * seen.inferences != len(seen.times):
        return None
    rounds = [seen.times[start : start + count] for start in range(0, len(seen.times), count)]
    names = [name for name, _ in rounds[0]]
    if any([name for name, _ in each] != names for each in rounds):
        return None
    if any(_named(kernel) and kernel.tactic not in name for kernel, name in zip(kernels, names, strict=True)):
        return None
    return {kernel.name: statistics.median(each[place][1] for each in rounds) for place, kernel in enumerate(kernels)}


def _by_kernel(kernels: Sequence[EngineLayer], seen: ProfiledTimes) -> dict[str, float]:
    """Kernels that one layer alone names, launched once in each inference."""
    launches = Counter(name for name, _ in seen.times)
    each = seen.inferences if seen.ordered else 1
    found: dict[str, float] = {}
    tactics = Counter(kernel.tactic for kernel in kernels if _named(kernel))
    for kernel in kernels:
        if tactics[kernel.tactic] != 1:
            continue
        names = [name for name in launches if kernel.tactic in name]
        if len(names) == 1 and launches[names[0]] == each:
            found[kernel.name] = statistics.median(time for name, time in seen.times if name == names[0])
    return found


def _named(kernel: EngineLayer) -> bool:
    return bool(kernel.tactic) and kernel.tactic != STUB
