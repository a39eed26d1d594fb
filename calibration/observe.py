"""One streaming pass over the data: ranges of activations, with state for the tensors and not for the samples.

Where a range is the largest magnitude, it is taken inside the runtime: the tensor gives the graph one more output,
`ReduceMax(Abs(x)) + ReduceSum(x - x)`, a scalar. The sum is zero unless a value is NaN or infinite: ONNX Runtime's
maximum passes over NaN. Every other calibrator needs the tensor itself, which becomes an output and is counted at once
(`histogram`).

Each sample is run alone, on one thread if `open_model` heeds that, and several samples at a time. What is seen of one
then depends neither on its neighbours nor on the number of threads or processes, and sums of it on no order. A graph
with a static batch runs groups of that many neighbours instead; the groups don't depend on the processes either.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.base import digest_of_bytes
from gpusq_deploy.artifacts.calibration import AMAX, CalibrationTable, Calibrator, TensorRange
from gpusq_deploy.calibration.calibrators import range_of
from gpusq_deploy.calibration.columns import column_weights
from gpusq_deploy.calibration.guard import input_warnings, statistics_of
from gpusq_deploy.calibration.histogram import Counts, counts_of
from gpusq_deploy.calibration.images import Sample
from gpusq_deploy.calibration.instrument import AMAX_SUFFIX, VALUES_SUFFIX, instrumented
from gpusq_deploy.calibration.sources import DataSource, evenly_filled, require_few_skipped, require_some
from gpusq_deploy.calibration.tally import Tally, bytes_from_tally, tally_from_bytes
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import GraphLayer
from gpusq_deploy.graph.values import static_batch, value_name

Arrays = Mapping[str, npt.NDArray[Any]]


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


def alone(own: bytes) -> Sequence[bytes]:
    """What every process saw, where there is but one."""
    return (own,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Observing:
    """How to observe; as it stands, largest magnitudes, in this process, one sample at a time.

    Attributes:
        calibrators: By tensor; a tensor that isn't named gets its largest magnitude.
        preprocessing: What the data should look like; None leaves that unchecked.
        rank: This process's number of `world`; it takes every world-th sample.
        gather: Sends this process's tally to all others, and returns those of all, its own among them.
        workers: Samples run at the same time.
    """

    calibrators: Mapping[str, Calibrator] = field(default_factory=dict[str, Calibrator])
    preprocessing: Preprocessing | None = None
    rank: int = 0
    world: int = 1
    gather: Callable[[bytes], Sequence[bytes]] = alone
    workers: int = 1


def collect_ranges(
    model: ir.Model,
    layers: Sequence[GraphLayer],
    source: DataSource,
    *,
    open_model: Callable[[Path], Runner],
    progress: Callable[[int, int], None] | None = None,
    how: Observing | None = None,
) -> CalibrationTable:
    """Observe the input of every given layer.

    Args:
        model: Float32 graph with one image input; left as it is.
        layers: Whose inputs are observed.
        source: Samples; each is seen once.
        open_model: Opens an ONNX file for running.
        progress: Called with the samples done and their number, of this process.
        how: Calibrators, workers and ranks.

    Raises:
        GpusqError: No readable sample, too many unreadable ones, or an activation that isn't finite.
    """
    how = how or Observing()
    tensors = {layer.input: how.calibrators.get(layer.input, AMAX) for layer in layers}
    own = _seen(model, layers, source, open_model=open_model, progress=progress, how=how)
    work = (source.name, len(source), how.world, *(f"{name}: {calibrator}" for name, calibrator in tensors.items()))
    about = digest_of_bytes(repr(work).encode())
    tally = Tally()
    for part in how.gather(bytes_from_tally(own, about=about)):
        tally.absorb(tally_from_bytes(part, about=about))
    skipped = tuple(tally.skipped[index] for index in sorted(tally.skipped))
    require_few_skipped(skipped, source)
    require_some(len(tally.samples), source)
    return CalibrationTable(
        source=source.name,
        digest=tally.digest(),
        images=len(tally.samples),
        observer=", ".join(sorted({str(calibrator) for calibrator in tensors.values()})) or str(AMAX),
        synthetic=source.synthetic,
        skipped=skipped,
        warnings=_warnings(tally, source, how.preprocessing),
        ranges=tuple(_range(tally, name, calibrator, layers) for name, calibrator in tensors.items()),
    )


def table_from_recorded(
    recorded: Mapping[str, float],
    layers: Sequence[GraphLayer],
    *,
    source: str,
    known: Sequence[GraphLayer] = (),
    origins: Mapping[str, str] | None = None,
) -> CalibrationTable:
    """A table from ranges that the checkpoint carries, by layer name.

    Two layers that read one tensor share its range: the larger of theirs.

    Args:
        recorded: amax of each layer's input.
        layers: The layers that need a range.
        source: The checkpoint.
        known: Further layers of the model, whose ranges may be recorded without being needed.
        origins: Who recorded a layer's range, where known.

    Raises:
        GpusqError: A range fits no layer, or a layer has none.
    """
    names = {layer.layer for layer in layers}
    strangers = sorted(set(recorded) - names - {layer.layer for layer in known})
    missing = sorted(names - set(recorded))
    if strangers or missing:
        problem = (
            f"fit no layer: {', '.join(strangers[:3])}" if strangers else f"are missing for {', '.join(missing[:3])}"
        )
        raise GpusqError(
            f"the checkpoint's recorded ranges {problem}",
            place=source,
            hint="make the checkpoint again, or save its weights alone and calibrate with --calib FOLDER",
        )
    largest: dict[str, TensorRange] = {}
    for layer in layers:
        found = largest.get(layer.input)
        if found is None or recorded[layer.layer] > found.amax:
            largest[layer.input] = TensorRange(
                tensor=layer.input,
                layer=layer.layer,
                amax=recorded[layer.layer],
                origin=": ".join([f"recorded in {source}", *filter(None, [(origins or {}).get(layer.layer)])]),
            )
    return CalibrationTable(
        source=source, digest="", images=0, observer="recorded", ranges=tuple(largest[name] for name in largest)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Observer:
    """Looks at groups of samples. `weights`, by tensor, are of those whose values are counted; None counts each once.

    `batch` is the graph's static batch, None where it takes one sample as well as many.
    """

    runner: Runner
    source: DataSource
    input: str
    batch: int | None
    weights: Mapping[str, Counts | None]

    def look(self, group: range) -> Tally:
        """The tally of some neighbouring samples."""
        tally = Tally()
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
            self._run(tally, batch)
        return tally

    def _run(self, tally: Tally, batch: npt.NDArray[np.float32]) -> None:
        for group, copies in evenly_filled(batch, self.batch):
            self._add(tally, self.runner.run({self.input: group}), copies=copies)

    def _add(self, tally: Tally, outputs: Arrays, *, copies: int) -> None:
        for name, values in outputs.items():
            tensor = name.removesuffix(AMAX_SUFFIX).removesuffix(VALUES_SUFFIX)
            require_finite(values, tensor)
            if name.endswith(VALUES_SUFFIX):
                counts = (counts_of(values, self.weights[tensor]) + copies // 2) // copies
                tally.counts[tensor] = tally.counts.get(tensor, 0) + counts
            if tensor != name:
                amax = float(np.max(np.abs(values), initial=0.0))
                tally.amax[tensor] = max(tally.amax.get(tensor, 0.0), amax)


def _seen(
    model: ir.Model,
    layers: Sequence[GraphLayer],
    source: DataSource,
    *,
    open_model: Callable[[Path], Runner],
    progress: Callable[[int, int], None] | None,
    how: Observing,
) -> Tally:
    """This process's share of the samples."""
    tensors = tuple(dict.fromkeys(layer.input for layer in layers))
    weights = _channel_weights(model, layers, how.calibrators)
    batch = static_batch(model.graph)
    groups = _groups(len(source), batch or 1)[how.rank :: how.world]
    mine = sum(map(len, groups))
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        save_model(instrumented(model, tensors, whole=weights), path)
        runner = open_model(path)
        observer = _Observer(
            runner=runner, source=source, input=value_name(model.graph.inputs[0]), batch=batch, weights=weights
        )
        try:
            for part in _in_order(observer.look, groups, how.workers):
                tally.absorb(part)
                require_few_skipped(tuple(tally.skipped.values()), source)
                if progress is not None:
                    progress(len(tally.samples) + len(tally.skipped), mine)
        finally:
            runner.close()
    return tally


def _in_order(look: Callable[[range], Tally], groups: Sequence[range], workers: int) -> Iterator[Tally]:
    """The groups' tallies in order; no more than two groups per worker are under way or wait."""
    waiting: deque[Future[Tally]] = deque()
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


def _channel_weights(
    model: ir.Model, layers: Sequence[GraphLayer], calibrators: Mapping[str, Calibrator]
) -> dict[str, Counts | None]:
    """Of the tensors whose values are counted."""
    weights: dict[str, Counts | None] = {}
    for tensor in dict.fromkeys(layer.input for layer in layers):
        name = calibrators.get(tensor, AMAX).name
        if name == "output-error":
            weights[tensor] = column_weights(model, [layer for layer in layers if layer.input == tensor])
        elif name != "amax":
            weights[tensor] = None
    return weights


def _range(tally: Tally, tensor: str, calibrator: Calibrator, layers: Sequence[GraphLayer]) -> TensorRange:
    reader = next(layer.layer for layer in layers if layer.input == tensor)
    origin = f"{calibrator} over {len(tally.samples)} samples"
    if tensor not in tally.counts:
        return TensorRange(tensor=tensor, layer=reader, amax=tally.amax[tensor], origin=origin)
    amax = range_of(tally.histogram(tensor), calibrator)
    largest = f"the largest magnitude is {tally.amax[tensor]:.6g}"
    return TensorRange(tensor=tensor, layer=reader, amax=amax, origin=f"{origin}; {largest}")


def _warnings(tally: Tally, source: DataSource, declared: Preprocessing | None) -> tuple[str, ...]:
    if source.synthetic or declared is None or tally.inputs is None:
        return ()
    return input_warnings(tally.inputs, declared)
