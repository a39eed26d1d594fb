"""From a checkpoint and data to stored ranges: the calibrating part of a build by itself, in one process or many."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from gpusq_deploy.artifacts import (
    ArchSpec,
    BatchRange,
    CalibrationTable,
    Calibrator,
    json_from_value,
    load_recipe,
    require_folder,
    require_used_rules,
    write_whole,
)
from gpusq_deploy.calibration import (
    Needs,
    Observing,
    Ranks,
    calibrated,
    calibrators_for,
    needs_of_layers,
    open_source,
    preprocessing_of_arrays,
    split_source,
)
from gpusq_deploy.compile.float_graph import ExportOptions, canonical_graph, merged_graph
from gpusq_deploy.compile.inputs import facts_of, open_file
from gpusq_deploy.compile.request import USUAL_BATCH
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import (
    Checkpoint,
    batch_of_file,
    is_onnx,
    load_checkpoint,
    require_another_file,
    weights_file,
)
from gpusq_deploy.graph import weighted_layers
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import layers_to_quantize


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateRequest:
    """Everything that gpusq-calibrate was asked. `calibrator` is for rules that name none.

    `calib_samples` is how many of the data's samples are used at most, spread evenly; None: all.
    """

    model: Path
    arch: ArchSpec | None
    recipe: Path | None
    calib: str
    calibrator: Calibrator
    batch: BatchRange
    opset: int
    out: Path
    force: bool
    state_dict: str | None = None
    calib_samples: int | None = None


def calibrate_checkpoint(request: CalibrateRequest, ranks: Ranks, reporter: Reporter) -> CalibrationTable:
    """Find the ranges of every layer that the recipe wants in INT8 or FP8; the first rank writes them to `out`.

    The samples that a build would keep apart for verification are kept apart here too.

    Raises:
        GpusqError: Anything that the user can mend; nothing is written then.
    """
    require_another_file(request.out, weights_file(request.model))
    _require_place(request.out, force=request.force)
    recipe = load_recipe(request.recipe)
    reporter.say(f"loading {request.model}")
    checkpoint, batch = _opened(request)
    for remark in checkpoint.remarks:
        reporter.say(f"{checkpoint.file}: {remark}")
    source, _, _ = split_source(open_source(request.calib, checkpoint.preprocessing, most=request.calib_samples))
    canonical = canonical_graph(checkpoint, ExportOptions(batch=batch, opset=request.opset), reporter)
    model = merged_graph(canonical, checkpoint, recipe).model
    layers = weighted_layers(model)
    require_used_rules(recipe, layers)
    wanted = layers_to_quantize(layers, recipe)
    if not wanted:
        raise GpusqError("the recipe wants no layer in INT8 or FP8: there is nothing to calibrate", place=recipe.name)
    how = Observing(
        preprocessing=checkpoint.preprocessing,
        rank=ranks.rank,
        world=ranks.world,
        gather=ranks.gather,
        workers=ranks.workers(),
    )
    # With magnitudes, as an FP16 build: the last bits of what a runtime computes depend on the outputs it is asked for.
    needs = needs_of_layers(wanted, calibrators_for(wanted, recipe, usual=request.calibrator)) | Needs(magnitudes=True)
    table = calibrated(model, needs, source, facts_of(checkpoint), reporter, how=how).table
    assert table is not None, "the data was looked at"
    if ranks.first:
        _write(request.out, table)
    return table


def _opened(request: CalibrateRequest) -> tuple[Checkpoint, BatchRange]:
    """What is calibrated, and the batch sizes that it takes."""
    undeclared = functools.partial(preprocessing_of_arrays, request.calib)
    if not is_onnx(request.model):
        checkpoint = load_checkpoint(
            request.model, arch=request.arch, state_dict=request.state_dict, undeclared=undeclared
        )
        return checkpoint, request.batch
    if request.state_dict is not None:
        raise GpusqError("--state-dict is for checkpoints: an ONNX file holds one model", place=str(request.model))
    checkpoint = open_file(request.model, request.arch, undeclared)
    assert checkpoint.given is not None, "load_onnx gives it"
    usual = request.batch == USUAL_BATCH
    return checkpoint, batch_of_file(checkpoint.given.model, request.batch, usual=usual, place=str(request.model))


def _require_place(out: Path, *, force: bool) -> None:
    require_folder(out)
    if out.is_dir() or (os.path.lexists(out) and not force):
        raise GpusqError(
            "the output exists already", place=str(out), hint="--force replaces a file; --out names another"
        )


def _write(out: Path, table: CalibrationTable) -> None:
    try:
        write_whole(out, json_from_value(table))
    except OSError as error:
        raise GpusqError(f"cannot write the ranges: {error.strerror}", place=str(out)) from error
