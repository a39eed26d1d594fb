"""Run the built graph on a producer's inputs, and say what its outputs differ by from the producer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts import ExpectedOutput, ProducerComparison, QuantPlan
from gpusq_deploy.bundle import producer_text
from gpusq_deploy.calibration import filled
from gpusq_deploy.compile.expected_outputs import ExpectedOutputs, outputs_in_order
from gpusq_deploy.compile.verify import bounded_db
from gpusq_deploy.engines import Session, open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import map_model, static_batch
from gpusq_deploy.numerics import equal_share, is_floating, sqnr_db, top1_agreement
from gpusq_deploy.progress import Reporter

_BATCH = 4
Array = npt.NDArray[Any]


def compare_expected(
    model: Path, expected: Sequence[ExpectedOutputs], plan: QuantPlan, reporter: Reporter
) -> tuple[ProducerComparison, ...]:
    """The built graph against each; empty, and said so, where the CPU can't run it.

    Raises:
        GpusqError: Inputs or outputs of another number or shape than the graph's.
    """
    if not expected:
        return ()
    if plan.float_type == "bf16":
        reporter.say("not compared with the producer's outputs: ONNX Runtime's CPU provider has no BF16 kernels")
        return ()
    found = tuple(_compared(model, each) for each in expected)
    for comparison in found:
        reporter.say(f"as trained: {producer_text(comparison)}")
    return found


def _compared(model: Path, expected: ExpectedOutputs) -> ProducerComparison:
    with closing(open_onnx(model, optimize=False, frugal=True)) as session:
        asked = tuple(session.inputs[0].shape[1:])
        if len(asked) != expected.inputs.ndim - 1 or any(
            size > 0 and size != given for size, given in zip(asked, expected.inputs.shape[1:], strict=True)
        ):
            raise GpusqError(
                f"the inputs are {list(expected.inputs.shape)}, the model takes [N, {', '.join(map(str, asked))}]",
                place=expected.source,
                hint="save the inputs as the model takes them, preprocessed",
            )
        names = [output.name for output in session.outputs]
        wanted = outputs_in_order(expected, names, place=expected.source)
        got = _answers(session, expected.inputs, static_batch(map_model(model).graph))
    outputs = tuple(_output(name, reference, got[name], expected.source) for name, reference in wanted.items())
    first = next(iter(wanted.values()))
    classes = first.ndim == 2 and is_floating(first)
    return ProducerComparison(
        source=expected.source,
        images=len(expected.inputs),
        outputs=outputs,
        top1_agreement=top1_agreement(first, got[names[0]]) if classes else None,
    )


def _answers(session: Session, inputs: npt.NDArray[np.float32], fixed: int | None) -> Mapping[str, Array]:
    size = fixed or _BATCH
    parts: dict[str, list[Array]] = {}
    for at in range(0, len(inputs), size):
        batch = inputs[at : at + size]
        for name, value in session.run({session.inputs[0].name: filled(batch, fixed)}).items():
            parts.setdefault(name, []).append(value[: len(batch)])
    return {name: np.concatenate(values) for name, values in parts.items()}


def _output(name: str, reference: Array, got: Array, source: str) -> ExpectedOutput:
    if reference.shape != got.shape:
        raise GpusqError(
            f"output {name} is {list(got.shape)}, and {list(reference.shape)} is expected",
            place=source,
            hint="give the outputs in the model's order, one array for each",
        )
    if not is_floating(reference):
        return ExpectedOutput(tensor=name, sqnr_db=None, equal=equal_share(reference, got))
    return ExpectedOutput(tensor=name, sqnr_db=bounded_db(sqnr_db(reference, got)))
