"""Where the ranges of a model's activations come from: found before, recorded in the checkpoint, or observed now."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import AMAX, CalibrationTable, Calibrator, Preprocessing
from gpusq_deploy.calibration.data import DataSource
from gpusq_deploy.calibration.distributed import Ranks
from gpusq_deploy.calibration.input_checks import few_warnings, range_warnings
from gpusq_deploy.calibration.observe import Observed, Observing, observe
from gpusq_deploy.calibration.stored_ranges import table_for_layers, table_from_recorded
from gpusq_deploy.calibration.tensorrt_cache import table_from_cache
from gpusq_deploy.engines import open_onnx
from gpusq_deploy.graph import GraphLayer, weighted_layers
from gpusq_deploy.progress import Reporter
from gpusq_deploy.text import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """What calibration knows of the model beside its graph.

    Attributes:
        file: Where it comes from.
        digest: Of the checkpoint; empty where there is none.
        preprocessing: What its data should look like; None leaves that unchecked.
        ranges: amax by layer that it records; `origins` says who recorded them, where known.
    """

    file: str
    digest: str = ""
    preprocessing: Preprocessing | None = None
    ranges: Mapping[str, float] = field(default_factory=dict[str, float])
    origins: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationInputs:
    """Samples to calibrate on and to verify on; `held_out` says that the two are apart.

    `table` are stored ranges, `cache` those of a TensorRT calibration cache by its tensors' names; `ranges` is the file
    of either. `real` says that `calibrate` was asked for: it may be used where ranges are missing.
    """

    calibrate: DataSource
    verify: DataSource
    held_out: bool
    table: CalibrationTable | None = None
    cache: Mapping[str, float] | None = None
    ranges: str = ""
    real: bool = False

    @property
    def given(self) -> bool:
        """True where ranges were found before, for the graph as it is."""
        return self.table is not None or self.cache is not None


def known_ranges(
    model: ir.Model,
    layers: Sequence[GraphLayer],
    data: CalibrationInputs,
    subject: ModelFacts,
    calibrators: Mapping[str, Calibrator],
    reporter: Reporter,
) -> CalibrationTable:
    """Ranges that were found before; else those that the checkpoint records.

    Where the checkpoint records those of some layers only, calibration data fills in the others, if there is any.
    """
    if data.table is not None:
        reporter.say(f"using {counted(len(data.table.ranges), 'stored range')}, calibrated on {data.table.source}")
        return table_for_layers(data.table, layers, place="--ranges")
    if data.cache is not None:
        reporter.say(f"using the ranges of the TensorRT calibration cache {data.ranges}")
        return table_from_cache(data.cache, model, layers, source=data.ranges)
    reporter.say(f"using {counted(len(subject.ranges), 'range')} that the checkpoint records")
    if any(calibrator != AMAX for calibrator in calibrators.values()):
        reporter.say("warning: --calibrator has no effect: the checkpoint records its ranges (see --recalibrate)")
    covered = {layer.input for layer in layers if layer.layer in subject.ranges}
    rest = [layer for layer in layers if layer.input not in covered] if data.real else []
    recorded = table_from_recorded(
        subject.ranges,
        [layer for layer in layers if layer not in rest],
        source=subject.file,
        known=weighted_layers(model),
        origins=subject.origins,
    )
    if not rest:
        return recorded
    how = Observing(calibrators=calibrators, preprocessing=subject.preprocessing, workers=Ranks().workers())
    return _joined(recorded, calibrated(model, rest, data.calibrate, subject, how, reporter).table)


def _joined(recorded: CalibrationTable, found: CalibrationTable) -> CalibrationTable:
    return msgspec.structs.replace(
        found,
        source=f"{recorded.source}; {found.source}",
        observer=f"{recorded.observer}, {found.observer}",
        ranges=(*recorded.ranges, *found.ranges),
    )


def calibrated(
    model: ir.Model,
    layers: Sequence[GraphLayer],
    source: DataSource,
    subject: ModelFacts,
    how: Observing,
    reporter: Reporter,
) -> Observed:
    """Ranges and channel moments of the calibration data; the table keeps what was skipped and what looks wrong."""
    reporter.say(f"calibrating {counted(len(layers), 'layer')} on {counted(len(source), 'sample')} of {source.name}")
    seen = observe(
        model,
        layers,
        source,
        open_model=functools.partial(open_onnx, threads=1),
        progress=lambda done, total: reporter.progress("calibrating", done, total),
        how=how,
    )
    table = seen.table
    warnings = (*few_warnings(table), *table.warnings, *range_warnings(table, layers, subject.ranges))
    for skipped in table.skipped:
        reporter.say(f"skipped: {skipped}")
    for warning in warnings:
        reporter.say(f"warning: {warning}")
    return replace(seen, table=msgspec.structs.replace(table, model=subject.digest, warnings=warnings))
