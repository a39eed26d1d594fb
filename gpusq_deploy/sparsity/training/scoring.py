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


class Judged(NamedTuple):
    """What a module predicts of all samples, and their targets; none of these without labels."""

    predictions: list[Any]
    targets: list[Any]

    def scores(self, task: Task, teacher: Sequence[Any]) -> Scores:
        """By the targets, and by what the teacher predicts."""
        return Scores(
            task.quality(self.predictions, self.targets) if self.targets else None,
            task.quality(self.predictions, task.as_targets(teacher)),
        )


def score(task: Task, module: torch.nn.Module, samples: Samples, teacher: Sequence[Any], batch_size: int) -> Scores:
    """Score a module on samples by their labels, and by the teacher's predictions of them."""
    return judged(task, module, samples, batch_size).scores(task, teacher)


def judged(task: Task, module: torch.nn.Module, samples: Samples, batch_size: int) -> Judged:
    """Run a module on all samples in eval mode; its mode is kept."""
    found, training = Judged([], []), module.training
    module.eval()
    with torch.no_grad():
        for batch in _batches(samples, batch_size):
            found.predictions.extend(task.predictions(task.answer(module, batch.images)))
            found.targets.extend(batch.targets or ())
    module.train(training)
    return found


def predict(task: Task, module: torch.nn.Module, samples: Samples, batch_size: int) -> list[Any]:
    """What a module predicts of all samples; see `judged`."""
    return judged(task, module, samples, batch_size).predictions


def _batches(samples: Samples, size: int) -> Iterator[Batch]:
    for start in range(0, len(samples), size):
        yield samples.batch(range(start, min(start + size, len(samples))))
