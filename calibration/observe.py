"""One streaming pass over the data: ranges of activations, with state for the tensors and not for the samples.

Where a range is the largest magnitude, it is taken inside the runtime: the tensor gives the graph one more output,
`ReduceMax(Abs(x)) + ReduceSum(x - x)`, a scalar. The sum is zero unless a value is NaN or infinite: ONNX Runtime's
maximum passes over NaN. Every other calibrator, and whoever wants channel moments, needs the tensor itself, which
becomes an output and is counted (`histogram`) or added up (`moments`) at once.

Each sample is run alone, on one thread if `open_model` heeds that, and several samples at a time. What is seen of one
then depends neither on its neighbours nor on the number of threads or processes, and sums of it on no order. A graph
with a static batch runs groups of that many neighbours instead; the groups don't depend on the processes either.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import AMAX, CalibrationTable, Calibrator, Preprocessing, TensorRange, digest_of_bytes
from gpusq_deploy.calibration.calibrators import range_of
from gpusq_deploy.calibration.data import (
    DataSource,
    evenly_filled,
    remarks,
    require_few_skipped,
    require_some,
    spread_indices,
)
from gpusq_deploy.calibration.histogram import Counts, counts_of
from gpusq_deploy.calibration.image_data import Sample
from gpusq_deploy.calibration.input_checks import input_warnings, sameness_warnings, statistics_of
from gpusq_deploy.calibration.instrument import (
    AMAX_SUFFIX,
    LARGEST_SUFFIX,
    VALUES_SUFFIX,
    instrumented,
    moved_from,
)
from gpusq_deploy.calibration.moments import ChannelMomentSums
from gpusq_deploy.calibration.needs import Needs, Observations, RangeNeed, needs_of_layers
from gpusq_deploy.calibration.observer_state import ObserverState, bytes_from_tally, tally_from_bytes
from gpusq_deploy.calibration.output_error_weights import column_weights
from gpusq_deploy.engines import open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import GraphLayer, scratch_model, static_batch, value_name
from gpusq_deploy.numerics import single_threaded_blas
from gpusq_deploy.text import counted

Arrays = Mapping[str, npt.NDArray[Any]]
# Few suffice to tell whether FP16 holds a tensor, for its limit keeps a margin.
SPREAD_SAMPLES = 8


class Runner(Protocol):
    """What calibration needs of a session: see `gpusq_deploy.engines.session.Session`."""

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name; called from several threads at once where there are several workers."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


def require_finite(values: npt.NDArray[Any], tensor: str) -> None:
    """Refuse an activation with NaN or infinity.

    Raises:
        GpusqError: Names the tensor.
    """
    if not np.isfinite(values).all():
        raise GpusqError(
            "the float model computes NaN or infinity on the calibration data",
            place=f"tensor {tensor}",
            hint="check the weights and the preprocessing",
        )


def open_single_threaded(path: Path) -> Runner:
    """A session of ONNX Runtime that several threads use at once, each run on one."""
    return open_onnx(path, threads=1)


def _unheard(_done: int, _total: int) -> None:
    """Nobody wants to know."""


def alone(own: bytes) -> Sequence[bytes]:
    """What every process saw, where there is but one."""
    return (own,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Observing:
    """How to observe; as it stands, in this process, one sample at a time.

    Attributes:
        preprocessing: What the data should look like; None leaves that unchecked.
        rank: This process's number of `world`; it takes every world-th sample.
        gather: Sends this process's tally to all others, and returns those of all, its own among them.
        workers: Samples run at the same time.
        progress: Called with the samples done and their number, of this process.
    """

    preprocessing: Preprocessing | None = None
    rank: int = 0
    world: int = 1
    gather: Callable[[bytes], Sequence[bytes]] = alone
    workers: int = 1
    progress: Callable[[int, int], object] = _unheard


def collect_ranges(
    model: ir.Model,
    layers: Sequence[GraphLayer],
    source: DataSource,
    *,
    calibrators: Mapping[str, Calibrator] | None = None,
    open_model: Callable[[Path], Runner] = open_single_threaded,
    how: Observing | None = None,
) -> CalibrationTable:
    """Ranges of the input of every given layer, by calibrators by tensor; see `observe`."""
    needs = needs_of_layers(layers, calibrators)
    found = observe(model, needs, source, open_model=open_model, how=how).table
    assert found is not None, "the data was looked at"
    return found


def observe(
    model: ir.Model,
    needs: Needs,
    source: DataSource,
    *,
    open_model: Callable[[Path], Runner] = open_single_threaded,
    how: Observing | None = None,
) -> Observations:
    """See what is needed of a graph's tensors; each sample is run once.

    Args:
        model: Float32 graph with one image input; left as it is.
        needs: Tensors, and what is wanted of them. Sums of moments depend on the samples' order, so there may be but
            one process where any are.
        source: Samples.
        open_model: Opens an ONNX file for running.
        how: Workers and ranks.

    Raises:
        GpusqError: No readable sample, too many unreadable ones, or an activation that isn't finite.
    """
    how = how or Observing()
    if needs.moments and how.world > 1:
        raise ValueError("channel moments need a single process")
    seen = _seen(model, needs, source, open_model=open_model, how=how)
    calibrators = {tensor: need.calibrator for tensor, need in needs.ranges.items()}
    work = (source.name, len(source), how.world, *(f"{name}: {calibrator}" for name, calibrator in calibrators.items()))
    about = digest_of_bytes(repr(work).encode())
    tally = ObserverState()
    for part in how.gather(bytes_from_tally(seen.tally, about=about)):
        tally.absorb(tally_from_bytes(part, about=about))
    skipped = tuple(tally.skipped[index] for index in sorted(tally.skipped))
    require_few_skipped(skipped, source)
    require_some(len(tally.samples), source)
    table = CalibrationTable(
        source=source.name,
        digest=tally.digest(),
        images=len(tally.samples),
        observer=", ".join(sorted({str(calibrator) for calibrator in calibrators.values()})) or str(AMAX),
        synthetic=source.synthetic,
        skipped=skipped,
        warnings=_warnings(tally, source, how.preprocessing),
        ranges=tuple(_range(tally, tensor, need) for tensor, need in needs.ranges.items()),
    )
    few = counted(min(len(source), SPREAD_SAMPLES), "sample")
    return Observations(
        needs=needs,
        table=table,
        moments={tensor: found.moments() for tensor, found in seen.sums.items()},
        magnitudes=seen.magnitudes,
        looked=f"seen on {few} of {source.name}" if needs.magnitudes else "",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Rows [n, K] of one activation, each of which stands `copies` times."""

    tensor: str
    rows: npt.NDArray[np.float32]
    copies: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Look:
    """What some neighbouring samples showed."""

    tally: ObserverState = field(default_factory=ObserverState)
    rows: list[_Rows] = field(default_factory=list[_Rows])
    magnitudes: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Observer:
    """Looks at groups of samples. `weights`, by tensor, are of those whose values are counted; None counts each once.

    `batch` is the graph's static batch, None where it takes one sample as well as many; `moments` are the tensors whose
    rows are handed on.
    """

    runner: Runner
    source: DataSource
    input: str
    batch: int | None
    weights: Mapping[str, Counts | None]
    moments: Collection[str]

    def look(self, group: range) -> _Look:
        """The tally of some neighbouring samples, and their rows."""
        look = _Look()
        tally = look.tally
        samples: list[Sample] = []
        for index in group:
            try:
                sample = self.source.sample(index)
            except GpusqError as error:
                tally.skipped[index] = f"{error.place}: {error.what}"
                continue
            samples.append(sample)
            tally.samples[index] = hashlib.sha256(sample.tobytes()).digest()
        if samples:
            batch = np.stack(samples)
            tally.inputs = statistics_of(batch)
            for filled, copies in evenly_filled(batch, self.batch):
                self._add(look, self.runner.run({self.input: filled}), copies=copies)
        return look

    def _add(self, look: _Look, outputs: Arrays, *, copies: int) -> None:
        tally = look.tally
        # The model's own outputs last: of several that aren't finite, an observed one lies nearest to the cause.
        for name in sorted(outputs, key=lambda name: not name.endswith((AMAX_SUFFIX, VALUES_SUFFIX))):
            values = outputs[name]
            if name.endswith(LARGEST_SUFFIX):
                largest = float(np.nan_to_num(values, nan=0.0))
                tensor = name.removesuffix(LARGEST_SUFFIX)
                look.magnitudes[tensor] = max(look.magnitudes.get(tensor, 0.0), largest)
                continue
            tensor = name.removesuffix(AMAX_SUFFIX).removesuffix(VALUES_SUFFIX)
            require_finite(values, tensor)
            if name.endswith(VALUES_SUFFIX) and tensor in self.moments:
                rows = np.asarray(values, np.float32).reshape(-1, values.shape[-1])
                look.rows.append(_Rows(tensor=tensor, rows=rows, copies=copies))
            if name.endswith(VALUES_SUFFIX) and tensor in self.weights:
                counts = (counts_of(values, self.weights[tensor]) + copies // 2) // copies
                tally.counts[tensor] = tally.counts.get(tensor, 0) + counts
            if tensor != name:
                amax = float(np.max(np.abs(values), initial=0.0))
                tally.amax[tensor] = max(tally.amax.get(tensor, 0.0), amax)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What this process's share of the samples showed, `count` in all."""

    count: int
    tally: ObserverState = field(default_factory=ObserverState)
    sums: dict[str, ChannelMomentSums] = field(default_factory=dict[str, ChannelMomentSums])
    magnitudes: dict[str, float] = field(default_factory=dict[str, float])


def _seen(
    model: ir.Model,
    needs: Needs,
    source: DataSource,
    *,
    open_model: Callable[[Path], Runner],
    how: Observing,
) -> _Seen:
    """Run this process's samples: first the few whose every tensor is looked at, on their own graph, then the rest."""
    batch = static_batch(model.graph)
    groups = _groups(len(source), batch or 1)[how.rank :: how.world]
    few = frozenset(spread_indices(len(source), SPREAD_SAMPLES)) if needs.magnitudes else frozenset[int]()
    first = [group for group in groups if not few.isdisjoint(group)]
    rest = [group for group in groups if few.isdisjoint(group)] if needs.ranges or needs.moments or not few else []
    seen = _Seen(count=sum(map(len, (*first, *rest))))
    weights = _channel_weights(model, needs)
    for share, magnitudes in ((first, True), (rest, False)):
        if not share:
            continue
        watched = instrumented(
            model, [*needs.ranges, *needs.moments], whole={*weights, *needs.moments}, magnitudes=magnitudes
        )
        with scratch_model(watched) as path:
            runner = open_model(path)
            observer = _Observer(
                runner=runner,
                source=source,
                input=value_name(model.graph.inputs[0]),
                batch=batch,
                weights=weights,
                moments=needs.moments,
            )
            try:
                _run(observer, share, seen, needs, how)
            finally:
                runner.close()
    for tensor, origin in moved_from(model).items() if few else ():  # in the graph's order
        if origin in seen.magnitudes:
            seen.magnitudes[tensor] = seen.magnitudes[origin]
    return seen


def _run(observer: _Observer, groups: Sequence[range], seen: _Seen, needs: Needs, how: Observing) -> None:
    """Look at some groups, and add up what they show, in order."""
    tally = seen.tally
    with single_threaded_blas(), ThreadPoolExecutor(how.workers) as adders:
        for part in _in_order(observer.look, groups, how.workers):
            tally.absorb(part.tally)
            _add_rows(seen.sums, part.rows, needs.moments, adders)
            for tensor, largest in part.magnitudes.items():
                seen.magnitudes[tensor] = max(seen.magnitudes.get(tensor, 0.0), largest)
            require_few_skipped(tuple(tally.skipped.values()), observer.source)
            how.progress(len(tally.samples) + len(tally.skipped), seen.count)


def _add_rows(
    sums: dict[str, ChannelMomentSums], parts: Sequence[_Rows], squares: Mapping[str, bool], adders: Executor
) -> None:
    """Tensors side by side; the rows of one in their order, so that its sums don't depend on the threads."""
    by_tensor: dict[str, list[_Rows]] = {}
    for part in parts:
        by_tensor.setdefault(part.tensor, []).append(part)
        if part.tensor not in sums:
            sums[part.tensor] = ChannelMomentSums(part.rows, squares=squares[part.tensor])

    def add(tensor: str) -> None:
        for part in by_tensor[tensor]:
            sums[tensor].add(part.rows, copies=part.copies)

    for _ in adders.map(add, by_tensor):
        pass


def _in_order(look: Callable[[range], _Look], groups: Sequence[range], workers: int) -> Iterator[_Look]:
    """What the groups show, in order; no more than two groups per worker are under way or wait."""
    waiting: deque[Future[_Look]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for group in groups:
                waiting.append(pool.submit(look, group))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _groups(count: int, size: int) -> tuple[range, ...]:
    return tuple(range(start, min(start + size, count)) for start in range(0, count, size))


def _channel_weights(model: ir.Model, needs: Needs) -> dict[str, Counts | None]:
    """Of the tensors whose values are counted."""
    weights: dict[str, Counts | None] = {}
    for tensor, need in needs.ranges.items():
        if need.calibrator.name == "output-error":
            weights[tensor] = column_weights(model, need.readers)
        elif need.calibrator != AMAX:
            weights[tensor] = None
    return weights


def _range(tally: ObserverState, tensor: str, need: RangeNeed) -> TensorRange:
    origin = f"{need.calibrator} over {counted(len(tally.samples), 'sample')}"
    if tensor not in tally.counts:
        return TensorRange(tensor=tensor, layer=need.label, amax=tally.amax[tensor], origin=origin)
    amax = range_of(tally.histogram(tensor), need.calibrator)
    largest = f"the largest magnitude is {tally.amax[tensor]:.6g}"
    return TensorRange(tensor=tensor, layer=need.label, amax=amax, origin=f"{origin}; {largest}")


def _warnings(tally: ObserverState, source: DataSource, declared: Preprocessing | None) -> tuple[str, ...]:
    if source.synthetic or tally.inputs is None:
        return ()
    alike = sameness_warnings(tally.inputs, tally.different)
    return (*alike, *(input_warnings(tally.inputs, declared) if declared else ()), *remarks(source))
