"""Where the ranges of a model's activations come from: found before, recorded in the checkpoint, or observed now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import AMAX, CalibrationTable, Calibrator, Preprocessing
from gpusq_deploy.calibration.data import DataSource
from gpusq_deploy.calibration.input_checks import few_warnings, range_warnings
from gpusq_deploy.calibration.named_ranges import NamedRanges
from gpusq_deploy.calibration.needs import Needs, Observations
from gpusq_deploy.calibration.observe import Observing, observe
from gpusq_deploy.calibration.stored_ranges import table_for_layers, table_from_recorded
from gpusq_deploy.calibration.tensorrt_cache import require_evidence, table_from_cache
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import GraphLayer, weighted_layers
from gpusq_deploy.numerics import MOST_ADDERS, cpu_workers
from gpusq_deploy.progress import Reporter
from gpusq_deploy.text import counted, some


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What calibration knows of the model beside its graph.

    Attributes:
        file: Where it comes from.
        digest: Of the checkpoint; empty where there is none.
        preprocessing: What its data should look like; None leaves that unchecked.
        ranges: amax by layer that it records; `origins` says who recorded them, where known.
        problems: What is wrong with the ranges of further layers.
    """

    file: str
    digest: str = ""
    preprocessing: Preprocessing | None = None
    ranges: Mapping[str, float] = field(default_factory=dict[str, float])
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    problems: Mapping[str, GpusqError] = field(default_factory=dict[str, GpusqError])


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationInputs:
    """Samples to calibrate on and to verify on; `held_out` says that the two are apart.

    `table` are stored ranges, `cache` those of another graph by its tensors' names; `ranges` is the file of either.
    `real` says that `calibrate` was asked for: it may be used where ranges are missing.
    """

    calibrate: DataSource
    verify: DataSource
    held_out: bool
    table: CalibrationTable | None = None
    cache: NamedRanges | None = None
    ranges: str = ""
    real: bool = False

    @property
    def given(self) -> bool:
        """True where ranges were found before, for the graph as it is."""
        return self.table is not None or self.cache is not None


class KnownRanges(NamedTuple):
    """Ranges that were found before, the layers that have none, and those whose range samples have to bear out."""

    table: CalibrationTable
    rest: tuple[GraphLayer, ...] = ()
    doubtful: tuple[GraphLayer, ...] = ()


def known_ranges(
    model: ir.Model,
    layers: Sequence[GraphLayer],
    data: CalibrationInputs,
    subject: ModelFacts,
    calibrators: Mapping[str, Calibrator],
    reporter: Reporter,
) -> KnownRanges | None:
    """Ranges that were given; else those that the checkpoint records; None where there are neither.

    Where the checkpoint records those of some layers only, calibration data fills in the others, if there is any.

    Args:
        model: The graph, before projections are merged: a checkpoint knows them by their own names.
        layers: Its layers that need a range.
        data: May hold ranges.
        subject: May record ranges.
        calibrators: By tensor; recorded ranges heed none.
        reporter: Hears which ranges are used.

    Raises:
        GpusqError: The range of one of the layers is missing or can't be.
    """
    if data.table is not None:
        reporter.say(f"using {counted(len(data.table.ranges), 'stored range')}, calibrated on {data.table.source}")
        return KnownRanges(table_for_layers(data.table, layers, place="--ranges"))
    if data.cache is not None:
        return _by_name(data.cache, model, layers, data, reporter)
    for layer in layers:
        if (name := _module_of(layer)) in subject.problems:
            raise subject.problems[name]
    if not subject.ranges:
        return None
    reporter.say(f"using {counted(len(subject.ranges), 'range')} that the checkpoint records")
    if any(calibrator != AMAX for calibrator in calibrators.values()):
        reporter.say("warning: --calibrator has no effect: the checkpoint records its ranges (see --recalibrate)")
    return _recorded(model, layers, subject, reporter, real=data.real)


def _by_name(
    cache: NamedRanges, model: ir.Model, layers: Sequence[GraphLayer], data: CalibrationInputs, reporter: Reporter
) -> KnownRanges:
    """Ranges of another graph's tensors."""
    reporter.say(f"using the ranges of the {cache.kind} {data.ranges}")
    if cache.warning:
        reporter.say(f"warning: {data.ranges}: {cache.warning}")
    matched = table_from_cache(cache, model, layers, source=data.ranges)
    if not data.real or data.calibrate.synthetic:
        require_evidence(matched, source=data.ranges)
    return KnownRanges(matched.table, doubtful=matched.doubtful)


def _recorded(
    model: ir.Model, layers: Sequence[GraphLayer], subject: ModelFacts, reporter: Reporter, *, real: bool
) -> KnownRanges:
    """Ranges that the checkpoint records; with `real` data, what it lacks is found there."""
    known = {_module_of(layer) for layer in weighted_layers(model)}
    if strangers := [name for name in subject.ranges if name not in known]:
        reporter.say(f"warning: not used: recorded ranges of modules that the graph doesn't have: {some(strangers)}")
    ranges = {layer.layer: subject.ranges[name] for layer in layers if (name := _module_of(layer)) in subject.ranges}
    origins = {layer.layer: subject.origins.get(_module_of(layer), "") for layer in layers}
    covered = {layer.input for layer in layers if layer.layer in ranges}
    rest = tuple(layer for layer in layers if layer.input not in covered) if real else ()
    wanted = [layer for layer in layers if layer not in rest]
    recorded = table_from_recorded(ranges, wanted, source=subject.file, origins=origins)
    return KnownRanges(recorded, rest)


def _module_of(layer: GraphLayer) -> str:
    """The module's name: of one that runs twice, the layer's name has the node's behind it."""
    return layer.layer.partition("/")[0]


def joined_ranges(recorded: CalibrationTable, found: CalibrationTable, rest: Sequence[GraphLayer]) -> CalibrationTable:
    """Recorded ranges, and those that were found for the rest of the layers."""
    tensors = {layer.input for layer in rest}
    return msgspec.structs.replace(
        found,
        source=f"{recorded.source}; {found.source}",
        observer=f"{recorded.observer}, {found.observer}",
        ranges=(*recorded.ranges, *(entry for entry in found.ranges if entry.tensor in tensors)),
    )


def calibrated(
    model: ir.Model,
    needs: Needs,
    source: DataSource,
    subject: ModelFacts,
    reporter: Reporter,
    *,
    how: Observing | None = None,
) -> Observations:
    """What is needed, seen on the calibration data; the table keeps what was skipped and what looks wrong."""
    adding = cpu_workers(MOST_ADDERS) if needs.moments else cpu_workers()
    how = how or Observing(preprocessing=subject.preprocessing, workers=adding)
    if tensors := {*needs.ranges, *needs.moments}:
        samples = counted(len(source), "sample")
        reporter.say(f"calibrating {counted(len(tensors), 'tensor')} on {samples} of {source.name}")

    def progress(done: int, total: int) -> None:
        reporter.progress("calibrating", done, total)

    seen = observe(model, needs, source, how=replace(how, progress=progress))
    assert seen.table is not None, "the data was looked at"
    table = seen.table
    warnings = (*few_warnings(table), *table.warnings, *range_warnings(table, needs.readers, subject.ranges))
    for skipped in table.skipped:
        reporter.say(f"skipped: {skipped}")
    for warning in warnings:
        reporter.say(f"warning: {warning}")
    return replace(seen, table=msgspec.structs.replace(table, model=subject.digest, warnings=warnings))
