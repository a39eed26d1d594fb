"""The task's measure as a condition of a build: compile asks, benchmarks knows how, and neither knows the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import TaskAccuracy
    from gpusq_deploy.benchmarks import Evaluation
    from gpusq_deploy.compile import BuildRequest


# Enough images to see that the model and the data fit.
_FIRST = 32


def judge_of(request: BuildRequest, reporter: Reporter) -> Callable[[Path], TaskAccuracy] | None:
    """Who measures the built graph beside the checkpoint on the labelled data; None where none was named.

    The checkpoint runs in torch, the graph on ONNX Runtime, on the same images, as `gpusq-eval MODEL BUNDLE` has them.

    Raises:
        GpusqError: The checkpoint can't be measured on the data: that is tried on a few images, before any other work.
    """
    wish = request.evaluation
    if wish is None:
        return None
    from gpusq_deploy.benchmarks import EvalRequest, evaluate_subjects
    from gpusq_deploy.bundle import task_text

    asked = EvalRequest(
        subjects=(request.model,),
        data=wish.data,
        arch=request.arch,
        state_dict=request.state_dict,
        annotations=wish.annotations,
        reduce_labels=wish.reduce_labels,
        runtime="onnxruntime",
        limit=_FIRST,
    )
    evaluate_subjects(asked, None, SILENT)

    def judge(built: Path) -> TaskAccuracy:
        both = replace(asked, subjects=(request.model, built), limit=None)
        found = evaluate_subjects(both, None, reporter)
        for note in (*(f"skipped {name}" for name in found.skipped), *found.notes):
            reporter.say(note)
        accuracy = _accuracy(found, wish.max_drop)
        reporter.say(f"evaluated: {task_text(accuracy)}")
        return accuracy

    return judge


def _accuracy(found: Evaluation, max_drop: float | None) -> TaskAccuracy:
    from gpusq_deploy.artifacts import TaskAccuracy

    given, ours = (subject.scores[0] for subject in found.subjects)
    assert ours.low is not None, "the second of two models has an interval"
    assert ours.high is not None, "the second of two models has an interval"
    return TaskAccuracy(
        data=found.data,
        measure=ours.measure,
        images=found.images,
        given=given.value,
        built=ours.value,
        low=ours.low,
        high=ours.high,
        max_drop=max_drop,
    )
