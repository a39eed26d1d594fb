"""How a model is scored: by its task, or by the cosine of its features."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from gpusq_deploy.artifacts import (
    Preprocessing,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.compressing.refusals import is_headless
from gpusq_deploy.sparsity.compressing.request import CompressRequest, trains
from gpusq_deploy.sparsity.training.blocks import first_tensor
from gpusq_deploy.sparsity.training.data.class_order import exchanged, other_order
from gpusq_deploy.sparsity.training.data.load import Labels
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.scoring import Judged, Scores, judged, score
from gpusq_deploy.sparsity.training.tasks.classification import require_logits
from gpusq_deploy.sparsity.training.tasks.task import Task


def answer_of(teacher: torch.nn.Module, preprocessing: Preprocessing) -> Any:
    """What the model answers to one image of zeros."""
    device = next(teacher.parameters()).device
    with torch.no_grad():
        return teacher(torch.zeros(1, *preprocessing.sample_shape, device=device))


def only_features(teacher: torch.nn.Module, task: Task, answer: Any, request: CompressRequest) -> bool:
    """True where nothing is trained and the model answers neither classes, boxes nor label maps, but tokens or maps."""
    if trains(request) or task.measure != "accuracy":
        return False
    first = first_tensor(answer)
    return first is not None and (first is not answer or first.ndim > 2 or is_headless(teacher))


def labels_of(teacher: torch.nn.Module, task: Task, answer: Any) -> Labels:
    """The model's labels, by its answer to zeros and by the config of a transformers model."""
    if task.measure == "accuracy":
        return Labels(require_logits(answer).shape[1], {})
    config: Any = getattr(teacher, "config", None)
    count = answer.shape[1] if isinstance(answer, torch.Tensor) else answer[0].shape[-1]
    return Labels(getattr(config, "num_labels", count), getattr(config, "id2label", {}))


class Scored(NamedTuple):
    """What scores a model on the held-out images, beside the teacher, and the teacher's own scores."""

    measured: Callable[[torch.nn.Module], Scores]
    dense: Scores


def scored_by(
    teacher: torch.nn.Module, task: Task, data: TrainingData, request: CompressRequest, *, features: bool
) -> Scored:
    """How models are scored: by the task, or by the cosine of their features.

    Raises:
        GpusqError: The labels are in another order than the teacher's classes.
    """
    size = request.training.batch_size
    if features:
        measured = functools.partial(_by_cosine, teacher=teacher, data=data, size=size)
        return Scored(measured, measured(teacher))
    reference = judged(task, teacher, data.held_out, size)
    _require_order(task, reference, data, request.data.data)

    def measured_by_task(module: torch.nn.Module) -> Scores:
        return score(task, module, data.held_out, reference.predictions, size)

    return Scored(measured_by_task, reference.scores(task, reference.predictions))


def _by_cosine(module: torch.nn.Module, *, teacher: torch.nn.Module, data: TrainingData, size: int) -> Scores:
    return Scores(None, cosine(module, teacher, data, size))


def _require_order(task: Task, reference: Judged, data: TrainingData, place: str) -> None:
    """Labels in another order would teach the model that what it knows is wrong."""
    if task.measure != "accuracy" or not reference.targets:
        return
    order = other_order(reference.predictions, reference.targets)
    if order:
        wrong, right = exchanged(order)
        name = f"{data.classes[wrong]!r} ({wrong})" if data.classes else str(wrong)
        raise GpusqError(
            f"the data's classes are in another order than the model's: of class {name} it predicts {right}",
            place=place,
            hint="name the class folders so that they sort in the model's order; a flat folder needs no labels",
        )


def cosine(module: torch.nn.Module, teacher: torch.nn.Module, data: TrainingData, size: int) -> float:
    """Mean cosine of the two models' output vectors (last axis) on the held-out images."""
    device = next(teacher.parameters()).device
    cosines: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(data.held_out), size):
            images = data.held_out.batch(range(start, min(start + size, len(data.held_out)))).images.to(device)
            ours, theirs = first_tensor(module(images)), first_tensor(teacher(images))
            assert ours is not None and theirs is not None, "found before"  # noqa: PT018 - no test
            cosines.append(torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).flatten())
    return float(torch.cat(cosines).double().mean())
