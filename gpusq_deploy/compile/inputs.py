"""What a build starts from: the checkpoint as it is read, and the data to calibrate and verify on."""

from __future__ import annotations

import shlex
from dataclasses import replace

from gpusq_deploy.artifacts import (
    Recipe,
)
from gpusq_deploy.calibration import (
    RANDOM,
    CalibrationInputs,
    DataSource,
    ModelFacts,
    is_tensorrt_cache,
    open_source,
    read_table,
    read_tensorrt_cache,
    split_source,
)
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import Checkpoint, text_from_arch
from gpusq_deploy.progress import Reporter
from gpusq_deploy.text import counted


def say_remarks(checkpoint: Checkpoint, request: BuildRequest, reporter: Reporter) -> Checkpoint:
    """Say what was changed or left out while reading, and set recorded ranges aside where that was asked."""
    for remark in checkpoint.remarks:
        reporter.say(f"{checkpoint.file}: {remark}")
    if not request.recalibrate or not checkpoint.ranges:
        return checkpoint
    verb = "is" if len(checkpoint.ranges) == 1 else "are"
    remark = (
        f"--recalibrate: the {counted(len(checkpoint.ranges), 'range')} that the checkpoint records {verb} not used"
    )
    reporter.say(remark)
    return replace(checkpoint, ranges={}, origins={}, remarks=(*checkpoint.remarks, remark))


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
    cache = table = None
    if request.ranges is not None and is_tensorrt_cache(request.ranges):
        cache = read_tensorrt_cache(request.ranges)
    elif request.ranges is not None:
        table = read_table(request.ranges, model=checkpoint.digest)
    if request.calib is None and ranged and not checkpoint.ranges and request.ranges is None:
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
        table=table,
        cache=cache,
        ranges=str(request.ranges or ""),
        real=request.calib is not None,
    )


def subject_of(checkpoint: Checkpoint) -> ModelFacts:
    """What calibration needs to know of a checkpoint."""
    return ModelFacts(
        file=checkpoint.file,
        digest=checkpoint.digest,
        preprocessing=checkpoint.preprocessing,
        ranges=checkpoint.ranges,
        origins=checkpoint.origins,
    )


def repair_command(request: BuildRequest) -> str:
    """The command that makes a dense checkpoint 2:4."""
    words = [shlex.join(["gpusq-compress", str(request.model)])]
    if request.arch is not None:
        words.append(text_from_arch(request.arch))
    if request.state_dict is not None:
        words.append(shlex.join(["--state-dict", request.state_dict]))
    return " ".join([*words, shlex.join(["--data", "FOLDER", "--out", f"{request.model.stem}-24.pt"])])
