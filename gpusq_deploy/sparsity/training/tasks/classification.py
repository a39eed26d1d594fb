"""One class for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import functional

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.losses import soft_loss
from gpusq_deploy.sparsity.training.tasks.task import Measure, TaskLosses


@dataclass(frozen=True, slots=True)
class Classification:
    """An answer is logits [N, classes]; a target is a class, or a share of each class [classes] float32."""

    temperature: float = 2.0

    @property
    def measure(self) -> Measure:
        """Top-1."""
        return "accuracy"

    def answer(self, module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes]; see `Task`."""
        return require_logits(module(images.to(next(module.parameters()).device)))

    def losses(
        self, module: torch.nn.Module, student: torch.Tensor, teacher: torch.Tensor, targets: Sequence[Any]
    ) -> TaskLosses:
        """Cross entropy and KL divergence; features are compared where both predict one class."""
        del module
        labels = torch.stack([torch.as_tensor(target) for target in targets]).to(student.device)
        return TaskLosses(
            hard=functional.cross_entropy(student, labels),
            soft=soft_loss(student, teacher, self.temperature),
            agree=student.argmax(dim=1) == teacher.argmax(dim=1),
        )

    def predictions(self, answer: torch.Tensor) -> list[int]:
        """Classes."""
        return cast("list[int]", answer.argmax(dim=1).tolist())

    def as_targets(self, predictions: Sequence[int]) -> list[int]:
        """The same."""
        return list(predictions)

    def quality(self, predictions: Sequence[int], targets: Sequence[int]) -> float:
        """The share that is right."""
        return sum(int(ours == theirs) for ours, theirs in zip(predictions, targets, strict=True)) / len(predictions)


def require_logits(answer: Any) -> torch.Tensor:
    """An answer that is logits [N, classes].

    Raises:
        GpusqError: It is another.
    """
    if isinstance(answer, torch.Tensor) and answer.ndim == 2:
        return answer
    raise GpusqError(
        f"training needs logits [N, classes], logits and boxes, or label maps; the model returns {_described(answer)}",
        place="the model's output",
        hint="--epochs 0 prunes a model of features; of other outputs, wrap it in a factory whose forward returns the "
        "one, or prune it in the build: gpusq-build --prune",
    )


def _described(answer: Any) -> str:
    """Shapes of an answer that isn't logits."""
    if isinstance(answer, torch.Tensor):
        return str(list(answer.shape))
    if not isinstance(answer, (tuple, list)):
        return f"a {type(answer).__name__}"
    entries = cast("Sequence[Any]", answer)
    return f"{len(entries)}: {', '.join(_described(entry) for entry in entries)}"
