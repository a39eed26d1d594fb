"""How good a model is at its task: by labels, and by a teacher's predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from gpusq_deploy.sparsity.training.samples import Batch, Samples
from gpusq_deploy.sparsity.training.tasks.task import Task


class Scores(NamedTuple):
    """The task's measure by the labels (None without labels), and by what the teacher predicts; both 0…1."""

    labelled: float | None
    agreement: float

    @property
    def main(self) -> float:
        """By the labels where there are any."""
        return self.agreement if self.labelled is None else self.labelled


def predict(task: Task, module: torch.nn.Module, samples: Samples, batch_size: int) -> list[Any]:
    """What a module predicts of all samples, in eval mode; its mode is kept."""
    return _judged(task, module, samples, batch_size)[0]


def score(task: Task, module: torch.nn.Module, samples: Samples, teacher: Sequence[Any], batch_size: int) -> Scores:
    """Score a module on samples by their labels, and by the teacher's predictions of them."""
    predicted, targets = _judged(task, module, samples, batch_size)
    return Scores(
        task.quality(predicted, targets) if samples.labelled else None,
        task.quality(predicted, task.as_targets(teacher)),
    )


def _judged(task: Task, module: torch.nn.Module, samples: Samples, size: int) -> tuple[list[Any], list[Any]]:
    """Predictions and targets; none of these without labels."""
    predictions, targets, training = list[Any](), list[Any](), module.training
    module.eval()
    with torch.no_grad():
        for batch in _batches(samples, size):
            predictions += task.predictions(task.answer(module, batch.images))
            targets += batch.targets or ()
    module.train(training)
    return predictions, targets


def _batches(samples: Samples, size: int) -> Iterator[Batch]:
    for start in range(0, len(samples), size):
        yield samples.batch(range(start, min(start + size, len(samples))))
