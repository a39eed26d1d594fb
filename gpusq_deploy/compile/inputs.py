"""What a build starts from: the checkpoint as it is read, and the data to calibrate and verify on."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from gpusq_deploy.artifacts import (
    ArchSpec,
    CalibrationTable,
    Preprocessing,
    PruningLoss,
    Recipe,
    Reference,
    SparsityReport,
)
from gpusq_deploy.calibration import (
    RANDOM,
    CalibrationInputs,
    DataSource,
    ModelFacts,
    SessionModule,
    open_source,
    preprocessing_of_arrays,
    read_ranges,
    split_source,
)
from gpusq_deploy.compile.expected_outputs import ExpectedOutputs, expected_outputs
from gpusq_deploy.compile.prune_stage import prune_as_asked
from gpusq_deploy.compile.recorded import heeded
from gpusq_deploy.compile.request import USUAL_BATCH, BuildRequest
from gpusq_deploy.engines import open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import (
    Checkpoint,
    batch_of_file,
    is_onnx,
    layer_weights,
    load_checkpoint,
    load_onnx,
    text_from_arch,
)
from gpusq_deploy.progress import Reporter
from gpusq_deploy.sparsity import graph_sparsity, require_known_layers, require_sparse, sparsity_report


def say_remarks(checkpoint: Checkpoint, request: BuildRequest, reporter: Reporter) -> Checkpoint:
    """Say what was changed or left out while reading, and set aside what was asked to be."""
    for remark in checkpoint.remarks:
        reporter.say(f"{checkpoint.file}: {remark}")
    return heeded(checkpoint, request, reporter)


def open_samples(request: BuildRequest, checkpoint: Checkpoint) -> DataSource:
    """The calibration data, or noise where there is none; opened once, for all who use it.

    Raises:
        GpusqError: It can't be opened.
    """
    return open_source(
        RANDOM if request.calib is None else request.calib, checkpoint.preprocessing, most=request.calib_samples
    )


def find_data(request: BuildRequest, checkpoint: Checkpoint, samples: DataSource, recipe: Recipe) -> CalibrationInputs:
    """Where ranges and verification samples come from.

    Raises:
        GpusqError: The recipe's layers need ranges, and there are neither ranges nor data.
    """
    ranged = request.quantize and any(rule.ranged for rule in recipe.rules)
    given = None if request.ranges is None else read_ranges(request.ranges, model=checkpoint.digest)
    recorded = checkpoint.ranges or checkpoint.quantizers.producer
    if request.calib is None and ranged and not recorded and request.ranges is None:
        raise GpusqError(
            "INT8 and FP8 need activation ranges: the checkpoint records none, and there is no calibration data",
            place=str(request.model),
            hint="add --calib FOLDER with a few dozen typical images (--calib random exercises the pipeline only)",
        )
    calibrate, apart, held_out = split_source(samples)
    return CalibrationInputs(
        calibrate=calibrate,
        verify=apart,
        held_out=held_out,
        table=given if isinstance(given, CalibrationTable) else None,
        cache=None if isinstance(given, CalibrationTable) else given,
        ranges=str(request.ranges or ""),
        real=request.calib is not None,
    )


def facts_of(checkpoint: Checkpoint) -> ModelFacts:
    """What calibration needs to know of a checkpoint."""
    return ModelFacts(
        file=checkpoint.file,
        digest=checkpoint.digest,
        preprocessing=checkpoint.preprocessing,
        ranges=checkpoint.ranges,
        origins=checkpoint.origins,
        problems={
            layer: GpusqError(found.what, place=found.place, hint=found.hint)
            for layer, found in checkpoint.quantizers.problems.items()
        },
    )


def repair_command(request: BuildRequest) -> str:
    """The command that makes a dense checkpoint 2:4."""
    if is_onnx(request.model):
        return "gpusq-compress CHECKPOINT, and export what it writes to ONNX"
    words = [shlex.join(["gpusq-compress", str(request.model)])]
    if request.arch is not None:
        words.append(text_from_arch(request.arch))
    if request.state_dict is not None:
        words.append(shlex.join(["--state-dict", request.state_dict]))
    return " ".join([*words, shlex.join(["--data", "FOLDER", "--out", f"{request.model.stem}-24.pt"])])


def require_two_four(report: SparsityReport, request: BuildRequest) -> None:
    """Refuse weights that aren't 2:4; see `require_sparse`."""
    require_sparse(report, command=repair_command(request), pruned_here=not is_onnx(request.model))


class Opened(NamedTuple):
    """What a build starts from; `pruning` is what that cost, None where nothing was pruned.

    `expected` are answers of the model's producer, which the built graph is held against.
    """

    checkpoint: Checkpoint
    data: CalibrationInputs
    pruning: PruningLoss | None
    expected: tuple[ExpectedOutputs, ...] = ()

    @property
    def reference(self) -> Reference:
        """What the exported float graph is."""
        return "float" if self.pruning is None else "pruned float"


def read_checkpoint(request: BuildRequest, reporter: Reporter) -> Checkpoint:
    """The checkpoint as it is stored; what was changed or left out while reading is said."""
    reporter.say(f"loading {request.model}")
    undeclared = functools.partial(preprocessing_of_arrays, request.calib)
    if is_onnx(request.model):
        checkpoint = open_file(request.model, request.arch, undeclared)
    else:
        checkpoint = load_checkpoint(
            request.model,
            arch=request.arch,
            allow_pickle=request.allow_pickle,
            state_dict=request.state_dict,
            undeclared=undeclared,
            keep_factors=not request.recalibrate and request.prune is None and request.ranges is None,
        )
    return say_remarks(checkpoint, request, reporter)


def open_file(path: Path, arch: ArchSpec | None, undeclared: Callable[[], Preprocessing | None]) -> Checkpoint:
    """An ONNX file as a checkpoint, whose module runs the file on ONNX Runtime; see `load_onnx`."""

    def module() -> SessionModule:
        return SessionModule(open_onnx(path, frugal=True), None, None, str(path))

    return load_onnx(path, module=module, arch=arch, undeclared=undeclared)


def fitted_batch(request: BuildRequest, checkpoint: Checkpoint) -> BuildRequest:
    """The request with the batch that an ONNX file is fixed to, where nobody asked for one.

    Raises:
        GpusqError: Somebody asked for another.
    """
    if checkpoint.given is None:
        return request
    usual = request.batch == USUAL_BATCH and not request.engine.profiles
    batch = batch_of_file(checkpoint.given.model, request.batch, usual=usual, place=str(request.model))
    return dataclasses.replace(request, batch=batch)


def require_stored(checkpoint: Checkpoint, request: BuildRequest, recipe: Recipe, *, sparse: bool) -> None:
    """Refuse a record of layers that the checkpoint hasn't got and, with `sparse`, weights that aren't 2:4.

    Raises:
        GpusqError: Names the layers.
    """
    source, record = checkpoint.file, checkpoint.sparsity
    if checkpoint.given is None:
        report = sparsity_report(layer_weights(checkpoint.module), source=source, recipe=recipe, record=record)
    else:
        report = graph_sparsity(checkpoint.given.model, source=source, recipe=recipe, record=record)
    require_known_layers(record, report)
    if sparse:
        require_two_four(report, request)


def open_inputs(request: BuildRequest, recipe: Recipe, reporter: Reporter) -> Opened:
    """The checkpoint, pruned if that was asked for and 2:4 where that was, and the data to calibrate and verify on."""
    checkpoint = read_checkpoint(request, reporter)
    samples = open_samples(request, checkpoint)
    checkpoint, loss = prune_as_asked(checkpoint, request, recipe, samples, reporter)
    require_stored(checkpoint, request, recipe, sparse=request.sparse)
    data = find_data(request, checkpoint, samples, recipe)
    return Opened(checkpoint, data, loss, expected_outputs(request, checkpoint, data, reporter))
