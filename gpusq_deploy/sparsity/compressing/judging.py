"""How a model is scored: by its task, or by the cosine of its features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from gpusq_deploy.artifacts import (
    Preprocessing,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.compressing.refusals import is_headless
from gpusq_deploy.sparsity.compressing.request import CompressRequest, trains
from gpusq_deploy.sparsity.compressing.run import Run
from gpusq_deploy.sparsity.training.data.class_order import other_order
from gpusq_deploy.sparsity.training.data.load import Labels
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.scoring import Scores, predict, score
from gpusq_deploy.sparsity.training.tasks.classification import require_logits
from gpusq_deploy.sparsity.training.tasks.task import Task


def answer_of(teacher: torch.nn.Module, preprocessing: Preprocessing) -> Any:
    """What the model answers to one image of zeros."""
    device = next(teacher.parameters()).device
    with torch.no_grad():
        return teacher(torch.zeros(1, *preprocessing.sample_shape, device=device))


def require_order(run: Run, teacher: torch.nn.Module) -> None:
    """Labels in another order would teach the model that what it knows is wrong."""
    samples, classes, size = run.data.held_out, run.data.classes, run.request.training.batch_size
    if run.features or not samples.labelled or run.task.measure != "accuracy":
        return
    targets = [target for index in range(len(samples)) for target in samples.batch([index]).targets or ()]
    order = other_order(predict(run.task, teacher, samples, size), targets)
    if order:
        wrong, right = next(pair for pair in order.items() if pair[0] != pair[1])
        name = f"{classes[wrong]!r} ({wrong})" if classes else str(wrong)
        raise GpusqError(
            f"the data's classes are in another order than the model's: of class {name} it predicts {right}",
            place=run.request.data.data,
            hint="name the class folders so that they sort in the model's order; a flat folder needs no labels",
        )


def only_features(teacher: torch.nn.Module, task: Task, answer: Any, request: CompressRequest) -> bool:
    """True where nothing is trained and the model answers neither classes, boxes nor label maps, but tokens or maps."""
    if trains(request) or task.measure != "accuracy":
        return False
    first = _first(answer)
    return first is not None and (first is not answer or first.ndim > 2 or is_headless(teacher))


def _first(answer: Any) -> torch.Tensor | None:
    """An answer, or the first of several; None where that is no tensor."""
    while isinstance(answer, (tuple, list)) and answer:
        answer = cast("Sequence[Any]", answer)[0]
    return answer if isinstance(answer, torch.Tensor) else None


def labels_of(teacher: torch.nn.Module, task: Task, answer: Any) -> Labels:
    """The model's labels, by its answer to zeros and by the config of a transformers model."""
    if task.measure == "accuracy":
        return Labels(require_logits(answer).shape[1], {})
    config: Any = getattr(teacher, "config", None)
    count = answer.shape[1] if isinstance(answer, torch.Tensor) else answer[0].shape[-1]
    return Labels(getattr(config, "num_labels", count), getattr(config, "id2label", {}))


def score_function(
    teacher: torch.nn.Module, task: Task, data: TrainingData, request: CompressRequest, *, features: bool
) -> Callable[[torch.nn.Module], Scores]:
    """What scores a model on the held-out images, beside the teacher."""
    size = request.training.batch_size
    if features:
        return lambda module: Scores(None, cosine(module, teacher, data, size))
    reference = predict(task, teacher, data.held_out, size)
    return lambda module: score(task, module, data.held_out, reference, size)


def cosine(module: torch.nn.Module, teacher: torch.nn.Module, data: TrainingData, size: int) -> float:
    """Mean cosine of the two models' output vectors (last axis) on the held-out images."""
    device = next(teacher.parameters()).device
    cosines: list[torch.Tensor] = []
    with torch.no_grad():
        for start in range(0, len(data.held_out), size):
            images = data.held_out.batch(range(start, min(start + size, len(data.held_out)))).images.to(device)
            ours, theirs = _first(module(images)), _first(teacher(images))
            assert ours is not None and theirs is not None, "found before"  # noqa: PT018 - no test
            cosines.append(torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).flatten())
    return float(torch.cat(cosines).double().mean())
