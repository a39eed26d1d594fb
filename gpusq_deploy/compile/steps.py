"""The steps of a compilation that need more than one room; `compile` has their order."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import (
    MODEL,
    BatchRange,
    CalibrationTable,
    FloatPrecision,
    Plan,
    Recipe,
    Reference,
    SparsityReport,
    Verification,
)
from gpusq_deploy.bundle import compared_text, doubts
from gpusq_deploy.calibration import (
    RANDOM,
    Data,
    DataSource,
    Subject,
    few,
    is_tensorrt_cache,
    largest_magnitudes,
    open_source,
    read_table,
    read_tensorrt_cache,
)
from gpusq_deploy.compile.compare_graphs import Pair
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.compile.verify import require_repeatable, require_same, split_source, verify
from gpusq_deploy.engines import Session, open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import Checkpoint, array_from_tensor, example_input, reference_outputs, text_from_arch
from gpusq_deploy.graph import Pass, other_weights
from gpusq_deploy.numerics import is_floating
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import Wide, text_of, wide_in
from gpusq_deploy.sparsity import graph_sparsity, move_packed_weights, packed_line, write_packed
from gpusq_deploy.text import counted, listed, one_line, some

# The batch that is traced has two samples.
_UNTRACED = 3
_MOST_CHECKED = 8
# How often the input is nudged, to see what float32's rounding does to an answer.
_NUDGES = 8
# An answer's scale over that: a network whose answers are no small rest of larger numbers has 2^16 to 2^21.
_OVER_ROUNDING = float(1 << 19)


def repair_command(request: BuildRequest) -> str:
    """The command that makes a dense checkpoint 2:4."""
    words = [shlex.join(["gpusq-compress", str(request.model)])]
    if request.arch is not None:
        words.append(text_from_arch(request.arch))
    if request.state_dict is not None:
        words.append(shlex.join(["--state-dict", request.state_dict]))
    return " ".join([*words, shlex.join(["--data", "FOLDER", "--out", f"{request.model.stem}-24.pt"])])


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


def find_data(request: BuildRequest, checkpoint: Checkpoint, samples: DataSource, recipe: Recipe) -> Data:
    """Where ranges and verification samples come from.

    Raises:
        GpusqError: The recipe's layers need ranges, and there are neither ranges nor data.
    """
    ranged = request.int8 and any(rule.ranged for rule in recipe.rules)
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
    return Data(
        calibrate=calibrate,
        verify=apart,
        held_out=held_out,
        table=table,
        cache=cache,
        ranges=str(request.ranges or ""),
        real=request.calib is not None,
    )


def subject_of(checkpoint: Checkpoint) -> Subject:
    """What calibration needs to know of a checkpoint."""
    return Subject(
        file=checkpoint.file,
        digest=checkpoint.digest,
        preprocessing=checkpoint.preprocessing,
        ranges=checkpoint.ranges,
        origins=checkpoint.origins,
    )


def find_wide(
    model: ir.Model, table: CalibrationTable | None, data: Data, remainder: FloatPrecision, reporter: Reporter
) -> Wide:
    """What of the graph FP16 can't hold; nothing where the remainder isn't FP16.

    Magnitudes are those of the ranges that are known, and those seen on a few of the samples, if there are any.
    """
    if remainder != "fp16":
        return Wide()
    seen = {} if table is None else {entry.tensor: (entry.amax, entry.origin) for entry in table.ranges}
    if data.real:
        source = few(data.calibrate)
        origin = f"seen on {counted(len(source), 'sample')} of {source.name}"
        for tensor, amax in largest_magnitudes(model, source, open_model=open_onnx).items():
            if amax > seen.get(tensor, (0.0, ""))[0]:
                seen[tensor] = (amax, origin)
    wide = wide_in(model, seen, looked=data.real)
    if wide.tensors:
        # Activations first: where a model overflows says more than which of its constants do.
        kept = some([text_of(tensor) for tensor in sorted(wide.tensors, key=lambda tensor: tensor.constant)], 1)
        reporter.say(f"kept in FP32, since FP16 can't hold {'it' if len(wide.tensors) == 1 else 'them'}: {kept}")
    return wide


def note_others(plan: Plan, model: ir.Model) -> Plan:
    """The plan with a note on each weight that no rule reaches, so that nothing stays float or dense unsaid."""
    notes = (
        f"{layer} stays {plan.remainder.upper()} and dense: its {operator} is not a MatMul, Gemm or Conv"
        for layer, operator in other_weights(model).items()
    )
    return msgspec.structs.replace(plan, notes=(*plan.notes, *notes))


def heard(label: str, passes: Sequence[Pass], reporter: Reporter) -> Callable[[Pass, ir.Model, int], None]:
    """For `run_passes`: reports each pass of several as progress."""
    done = itertools.count(1)

    def after(_step: Pass, _model: ir.Model, _changes: int) -> None:
        reporter.progress(label, next(done), len(passes))

    return after


def check_export(checkpoint: Checkpoint, model: Path, batch: BatchRange, reporter: Reporter) -> float:
    """Run torch and the exported graph on the same inputs, at several batch sizes; the largest relative difference.

    The smallest batch of the range, the best one up to 8, and one between that differs from the one that was traced:
    so a batch baked in shows, and a branch on its size.

    Raises:
        GpusqError: They disagree at one of the sizes, which is named; or torch does with itself, run again.
    """
    sizes = sizes_to_check(batch)
    session = open_onnx(model, frugal=True)
    try:
        if session.inputs[0].shape[0] > 0 and not batch.static:
            raise GpusqError(
                f"the exported graph takes batch {session.inputs[0].shape[0]} alone, and {batch} was asked for: the "
                "model branches on its batch size, or has one baked in",
                place=str(checkpoint.arch),
                hint="take the branch out of the model, or build with a fixed batch: --batch 8",
            )
        found = [_checked(checkpoint, session, size, reporter) for size in sizes]
    finally:
        session.close()
    wrong = [(size, error) for size, (_, error) in zip(sizes, found, strict=True) if error is not None]
    if wrong:
        raise _unlike(wrong, sizes)
    difference = max(difference for difference, _ in found)
    unseen = "" if batch.maximum == sizes[-1] else f"; larger batches, up to {batch.maximum}, were not run"
    reporter.say(f"exported graph agrees with torch to {difference:.1e} (relative) at batch {listed(sizes)}{unseen}")
    return difference


def sizes_to_check(batch: BatchRange) -> tuple[int, ...]:
    """Batch sizes of a range to compare an export at: none above 8, unless the range has no smaller one."""
    between = min(max(batch.minimum, _UNTRACED), batch.maximum)
    return tuple(sorted({batch.minimum, between, max(batch.minimum, min(batch.optimum, _MOST_CHECKED))}))


def _checked(
    checkpoint: Checkpoint, session: Session, size: int, reporter: Reporter
) -> tuple[float, GpusqError | None]:
    """The largest difference at one batch size; or what is wrong there.

    Raises:
        GpusqError: Torch answers the same input in two ways.
    """
    place = f"{checkpoint.arch}, batch {size}"
    feed = array_from_tensor(example_input(checkpoint, size))
    references = _torch_answers(checkpoint, feed, place)

    try:
        answers = list(session.run({session.inputs[0].name: feed}).values())
    except GpusqError as error:
        return 0.0, error
    pairs = [(_as_batched(ref, got, reporter), got) for ref, got in zip(references, answers, strict=True)]

    def difference(scales: Sequence[float]) -> float:
        measured = zip(pairs, scales, strict=True)
        return max(require_same(ref, got, place=place, scale=scale) for (ref, got), scale in measured)

    with suppress(GpusqError):
        return difference([0.0] * len(pairs)), None
    require_repeatable(references, reference_outputs(checkpoint, feed), place=str(checkpoint.arch))
    try:
        return difference(_scales(checkpoint, feed, references)), None
    except GpusqError as error:
        return 0.0, error


def _scales(
    checkpoint: Checkpoint, feed: npt.NDArray[np.float32], references: Sequence[npt.NDArray[Any]]
) -> list[float]:
    """The scale of what each answer is computed from, by how much it changes as every input moves by one rounding.

    An answer may be a small rest of larger numbers: the mean of normalised tokens is zero but for rounding. Then it is
    as exact as they are, and not to a share of itself. Of such an answer this scale is the larger number.
    """
    draws = np.random.default_rng(0)
    changes = [0.0] * len(references)
    for _ in range(_NUDGES):
        nudged = feed * (1 + np.finfo(np.float32).eps * draws.choice([-1.0, 1.0], feed.shape))
        answers = reference_outputs(checkpoint, nudged.astype(np.float32))
        for index, (one, other) in enumerate(zip(references, answers, strict=True)):
            if is_floating(one) and one.shape == other.shape:
                changes[index] = max(changes[index], float(np.max(np.abs(one - other), initial=0.0)))
    return [_OVER_ROUNDING * change if np.isfinite(change) else 0.0 for change in changes]


def _as_batched(reference: npt.NDArray[Any], got: npt.NDArray[Any], reporter: Reporter) -> npt.NDArray[Any]:
    """Torch's answer to one sample with the axes that the graph gives it, where `squeeze()` dropped some; said."""
    if reference.shape == got.shape or reference.ndim >= got.ndim or got.shape[0] != 1:
        return reference
    if reference.squeeze().shape != got.squeeze().shape:
        return reference
    shapes = f"torch answers {list(reference.shape)}, the graph {list(got.shape)}"
    reporter.say(f"at batch 1 {shapes}: the engine keeps axes of one element")
    return reference.reshape(got.shape)


def _torch_answers(checkpoint: Checkpoint, feed: npt.NDArray[np.float32], place: str) -> tuple[npt.NDArray[Any], ...]:
    try:
        return reference_outputs(checkpoint, feed)
    except GpusqError:
        raise
    except Exception as error:  # the model's own code, which can raise anything
        raise GpusqError(
            f"torch can't run the model on {counted(len(feed), 'sample')}: {one_line(error)}",
            place=place,
            hint="--batch MIN:OPT:MAX names the batch sizes that the model takes",
        ) from error


def _unlike(wrong: Sequence[tuple[int, GpusqError]], sizes: Sequence[int]) -> GpusqError:
    """The first error; where the graph is right at other sizes, what that tells."""
    size, first = wrong[0]
    right = [each for each in sizes if each not in {each for each, _ in wrong}]
    if not right:
        return first
    return GpusqError(
        f"at batch {size}, {first.what}; at batch {listed(right)} they agree",
        place=first.place,
        hint="does the model branch on its batch size? one graph can't follow that: take the branch out, or leave the "
        "size out with another --batch MIN:OPT:MAX",
    )


def sparsity_kept(built: ir.Model, stored: SparsityReport, recipe: Recipe) -> SparsityReport:
    """The 2:4 state of the weights that will run, with the checkpoint's expectations.

    Raises:
        AssertionError: A pass broke what was valid in the checkpoint: our bug.
    """
    before = {state.layer: state for state in stored.layers}
    after = graph_sparsity(built, source=MODEL, recipe=recipe).layers
    lost = [state.layer for state in after if before[state.layer].valid and not state.valid]
    if lost:
        raise AssertionError(f"the passes broke 2:4 in {', '.join(lost)}")
    expected = (
        msgspec.structs.replace(state, expected=before[state.layer].expected, reason=before[state.layer].reason)
        for state in after
    )
    return SparsityReport(source=MODEL, layers=tuple(expected))


def pack_weights(built: ir.Model, kept: SparsityReport, folder: Path, reporter: Reporter) -> None:
    """Store every 2:4 INT8 weight packed, and let the graph refer to a file that can be made from that.

    Raises:
        GpusqError: There is no such weight.
    """
    index = write_packed(built, kept, folder)
    if index is None:
        raise GpusqError(
            "nothing to pack: no INT8 weight of the model is 2:4",
            place="--pack",
            hint="leave out --pack, or name sparse INT8 layers in the recipe",
        )
    move_packed_weights(built, index, folder)
    reporter.say(packed_line(index))


def verify_built(
    pair: Pair, data: Data, plan: Plan, reporter: Reporter, *, reference: Reference
) -> Verification | None:
    """Compare the built graph with the float graph; None, and said so, where the CPU can't run it."""
    if plan.remainder == "bf16":
        reporter.say("not compared with the float model: ONNX Runtime's CPU provider has no BF16 kernels")
        return None
    result = verify(
        pair,
        data.verify,
        held_out=data.held_out,
        reference=reference,
        progress=lambda done, total: reporter.progress("verifying", done, total),
    )
    calibrated = any(layer.activation is not None for layer in plan.layers)
    reporter.say(f"compared: {compared_text(result, calibrated=calibrated)}")
    for doubt in doubts(result):
        reporter.say(f"warning: {doubt}")
    return result
