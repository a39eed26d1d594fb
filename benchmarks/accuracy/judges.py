"""Which judge a model is for: what was asked for, or what its answer to zeros looks like."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch

from gpusq_deploy.benchmarks.accuracy.classification import ClassJudge
from gpusq_deploy.benchmarks.accuracy.detection import BoxJudge
from gpusq_deploy.benchmarks.accuracy.judge import Judge
from gpusq_deploy.benchmarks.accuracy.retrieval import VectorJudge
from gpusq_deploy.benchmarks.accuracy.segmentation import MapJudge
from gpusq_deploy.benchmarks.accuracy.subject import Subject
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Detection, Task, task_of
from gpusq_deploy.benchmarks.accuracy.values import TaskName, TaskRequest
from gpusq_deploy.errors import GpusqError

_NEEDS: dict[TaskName, str] = {
    "classification": "logits [N, classes]",
    "detection": "logits [N, queries, classes] and boxes [N, queries, 4]",
    "segmentation": "logits [N, classes, h, w]",
}


class Chosen(NamedTuple):
    """A judge, and so many classes the model has."""

    judge: Judge
    classes: int


def choose_judge(subject: Subject, module: torch.nn.Module, asked: TaskRequest, *, maps: bool) -> Chosen:
    """The judge for a model.

    Args:
        subject: The model.
        module: The same, loaded.
        asked: The task; `"auto"`: that of its answer.
        maps: Whether the data has label maps.

    Raises:
        GpusqError: Its answer isn't of the task, or a detector doesn't say whether its last class is none.
    """
    device = next(module.parameters()).device
    with torch.inference_mode():
        answer = module(torch.zeros(1, *subject.sample_shape, device=device))
    task = task_of(module, answer, maps=maps or asked == "segmentation")
    found = _name(task, answer, headless=subject.facts.headless)
    name = found if asked == "auto" else asked
    if name == "retrieval":
        return Chosen(VectorJudge(), sys.maxsize)
    if name == "classification" and isinstance(answer, torch.Tensor) and answer.ndim == 2:
        return Chosen(ClassJudge(), answer.shape[1])
    if name != found or name == "classification":
        raise GpusqError(
            f"the model answers {_shapes(answer)}, {name} needs {_NEEDS[name]}",
            place=subject.name,
            hint="a model of features is evaluated with --task retrieval",
        )
    if isinstance(task, Detection):
        return _detector(subject, task, answer[0].shape[-1])
    return Chosen(MapJudge(answer.shape[1]), answer.shape[1])


def _detector(subject: Subject, task: Detection, classes: int) -> Chosen:
    if subject.facts.config is None and subject.kind != "checkpoint":
        raise GpusqError(
            "nothing says whether the detector's last class is no object",
            place=subject.name,
            hint="name its checkpoint before it, or --arch",
        )
    return Chosen(BoxJudge(task), classes - int(task.no_object))


def _name(task: Task, answer: Any, *, headless: bool) -> TaskName:
    if task.measure == "mAP":
        return "detection"
    if task.measure == "mIoU":
        return "segmentation"
    logits = isinstance(answer, torch.Tensor) and answer.ndim == 2 and not headless
    return "classification" if logits else "retrieval"


def _shapes(answer: Any) -> str:
    if isinstance(answer, torch.Tensor):
        return str(list(answer.shape))
    several = cast("Sequence[Any]", answer) if isinstance(answer, (tuple, list)) else ()
    return ", ".join(map(_shapes, several)) or f"a {cast('object', answer).__class__.__name__}"
