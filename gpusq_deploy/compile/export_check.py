"""Compare the float graph with torch, or with the ONNX file that it was made from, at several batch sizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts import (
    BatchRange,
)
from gpusq_deploy.compile.verify import Array
from gpusq_deploy.engines import Session, open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import Checkpoint, array_from_tensor, example_input, reference_outputs
from gpusq_deploy.numerics import equal_share, is_floating
from gpusq_deploy.progress import Reporter
from gpusq_deploy.text import counted, listed, one_line

# The batch that is traced has two samples.
_UNTRACED = 3


_MOST_CHECKED = 8


# How often the input is nudged, to see what float32's rounding does to an answer.
_NUDGES = 8


# An answer's scale over that: a network whose answers are no small rest of larger numbers has 2^16 to 2^21.
_OVER_ROUNDING = float(1 << 19)


def check_export(checkpoint: Checkpoint, model: Path, batch: BatchRange, reporter: Reporter) -> float:
    """Run the model as given and its float graph on the same inputs, at several batch sizes; the largest difference.

    It is relative. The model as given is torch's, or an ONNX file on ONNX Runtime.

    The smallest batch of the range, the best one up to 8, and one between that differs from the one that was traced:
    so a batch baked in shows, and a branch on its size.

    Raises:
        GpusqError: They disagree at one of the sizes, which is named; or the model does with itself, run again.
    """
    sizes = sizes_to_check(batch)
    with closing(open_onnx(model, frugal=True)) as session:
        if session.inputs[0].shape[0] > 0 and not batch.static:
            raise GpusqError(
                f"the exported graph takes batch {session.inputs[0].shape[0]} alone, and {batch} was asked for: the "
                "model branches on its batch size, or has one baked in",
                place=str(checkpoint.arch),
                hint="take the branch out of the model, or build with a fixed batch: --batch 8",
            )
        found = [_checked(checkpoint, session, size, reporter) for size in sizes]
    wrong = [(size, error) for size, (_, error) in zip(sizes, found, strict=True) if error is not None]
    if wrong:
        raise _unlike(wrong, sizes)
    difference = max(difference for difference, _ in found)
    unseen = "" if batch.maximum == sizes[-1] else f"; larger batches, up to {batch.maximum}, were not run"
    agree = f"{_graph_of(checkpoint)} agrees with {checkpoint.runner} to {difference:.1e} (relative)"
    reporter.say(f"{agree} at batch {listed(sizes)}{unseen}")
    return difference


def _graph_of(checkpoint: Checkpoint) -> str:
    return "exported graph" if checkpoint.given is None else "float graph"


def sizes_to_check(batch: BatchRange) -> tuple[int, ...]:
    """Batch sizes of a range to compare an export at: none above 8, unless the range has no smaller one."""
    between = min(max(batch.minimum, _UNTRACED), batch.maximum)
    return tuple(sorted({batch.minimum, between, max(batch.minimum, min(batch.optimum, _MOST_CHECKED))}))


def _checked(
    checkpoint: Checkpoint, session: Session, size: int, reporter: Reporter
) -> tuple[float, GpusqError | None]:
    """The largest difference at one batch size; or what is wrong there.

    Raises:
        GpusqError: The model as given answers the same input in two ways.
    """
    place = f"{checkpoint.arch}, batch {size}"
    feed = array_from_tensor(example_input(checkpoint, size))
    references = _given_answers(checkpoint, feed, place)

    try:
        answers = list(session.run({session.inputs[0].name: feed}).values())
    except GpusqError as error:
        return 0.0, error
    pairs = [(_as_batched(ref, got, reporter), got) for ref, got in zip(references, answers, strict=True)]
    limit = _HALF_TOLERANCE if checkpoint.given is not None and checkpoint.given.half else _EXPORT_TOLERANCE
    compared = functools.partial(require_same, place=place, runner=checkpoint.runner, limit=limit)

    def difference(scales: Sequence[float]) -> float:
        measured = zip(pairs, scales, strict=True)
        return max(compared(ref, got, scale=scale) for (ref, got), scale in measured)

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


def _given_answers(checkpoint: Checkpoint, feed: npt.NDArray[np.float32], place: str) -> tuple[npt.NDArray[Any], ...]:
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


# Two orders above what float32 exports show: 2.5e-6 for DINOv2 ViT-S/14, 3.9e-7 for a random ViT-L.
_EXPORT_TOLERANCE = 1e-4
# Of a file that rounds to half precision between its operators, which the float graph doesn't.
_HALF_TOLERANCE = 2e-2


_UNEQUAL_INTEGERS = 0.01


def require_same(
    reference: Array,
    got: Array,
    *,
    place: str,
    scale: float = 0.0,
    runner: str = "torch",
    limit: float = _EXPORT_TOLERANCE,
) -> float:
    """Largest difference of a float graph from the model as given, relative to the largest reference value.

    Of integers and booleans it is the share that differs: the larger of two logits, or their order, is a matter of
    rounding where the two are nearly the same.

    Args:
        reference: The model's answer.
        got: The graph's.
        place: The architecture, for the error.
        scale: What floats' difference is relative to where the largest reference value is smaller.
        runner: Who answers for the model as it was given, for the error.
        limit: The most that floats may differ by.

    Raises:
        GpusqError: More than the limit, of integers more than a hundredth, or not finite: the export is wrong.
    """
    graph = "exported graph" if runner == "torch" else "float graph"
    if reference.shape != got.shape:
        raise GpusqError(
            f"the {graph} answers {list(got.shape)}, {runner} {list(reference.shape)}",
            place=place,
            hint="try another --opset or a fixed --batch",
        )
    floating = is_floating(got)
    difference = _difference(reference, got, scale) if floating else 1 - equal_share(reference, got)
    if not difference <= (limit if floating else _UNEQUAL_INTEGERS):
        what = f"relative difference {difference:.3g}" if floating else f"{difference:.1%} of the {_kind(got)} differ"
        raise GpusqError(
            f"the {graph} computes something else than {runner}: {what}",
            place=place,
            hint="this model can't be exported faithfully with this opset; try another --opset or a fixed --batch",
        )
    return difference


def _kind(array: Array) -> str:
    return "booleans" if array.dtype == np.bool_ else "integers"


def require_repeatable(first: Sequence[Array], second: Sequence[Array], *, place: str) -> None:
    """Refuse a model that answers one input in two ways: nothing that is compiled can be compared with it.

    Args:
        first: Its outputs.
        second: Its outputs on the same input, run again.
        place: The architecture, for the error.

    Raises:
        GpusqError: They differ by more than an export may, or aren't finite.
    """
    if not all(np.isfinite(each).all() for each in (*first, *second) if is_floating(each)):
        raise GpusqError(
            "the model computes NaN or infinity on random input, so nothing can be compared with it",
            place=place,
            hint="check the weights: a damaged or diverged checkpoint holds NaN",
        )
    differences = [
        _difference(one, other) for one, other in zip(first, second, strict=True) if one.shape == other.shape
    ]
    if len(differences) == len(first) and max(differences) <= _EXPORT_TOLERANCE:
        return
    told = f": relative difference {max(differences):.3g}" if differences else ""
    raise GpusqError(
        f"the model answers differently each time that it is run on one input{told}; it draws random numbers, as for "
        "masks",
        place=place,
        hint="name the class without that (ViTMAE's encoder draws masks too); or wrap it in a factory whose forward "
        "draws nothing: package.module:factory",
    )


def _difference(reference: Array, got: Array, scale: float = 0.0) -> float:
    """Largest difference, relative to the largest reference value; of integers and booleans, as if they were floats."""
    reference, got = (each if is_floating(each) else each.astype(np.float64) for each in (reference, got))
    return float(np.max(np.abs(reference - got), initial=0.0) / (np.max(np.abs(reference), initial=scale) or 1.0))
