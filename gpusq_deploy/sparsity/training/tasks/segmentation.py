"""One class for each pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.losses import soft_loss
from gpusq_deploy.sparsity.training.tasks.task import Measure, TaskLosses

IGNORED = 255  # the label of a pixel that has no class


@dataclass(frozen=True, slots=True)
class Segmentation:
    """An answer is logits [N, classes, h, w], resized to the images; a target int64 [height, width], 255 for none."""

    temperature: float = 2.0

    @property
    def measure(self) -> Measure:
        """Mean IoU over the classes."""
        return "mIoU"

    def answer(self, module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes, height, width]; see `Task`."""
        logits = self.logits(module, images)
        return functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def logits(self, module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes, h, w] as the model answers them, on its device.

        Raises:
            GpusqError: It answers something else.
        """
        logits = module(images.to(next(module.parameters()).device))
        if not isinstance(logits, torch.Tensor) or logits.ndim != 4:
            raise GpusqError("the model returns no logits [N, classes, h, w]", place="the model's output")
        return logits

    def losses(
        self, module: torch.nn.Module, student: torch.Tensor, teacher: torch.Tensor, targets: Sequence[torch.Tensor]
    ) -> TaskLosses:
        """Cross entropy and KL divergence, both the mean over pixels; features are compared of every sample."""
        del module
        labels = torch.stack(list(targets)).to(student.device)
        hard = functional.cross_entropy(student, labels, ignore_index=IGNORED, reduction="sum")
        return TaskLosses(
            hard=hard / (labels != IGNORED).sum().clamp_min(1),
            soft=soft_loss(_pixels(student), _pixels(teacher), self.temperature),
            agree=torch.ones(len(student), dtype=torch.bool, device=student.device),
        )

    def predictions(self, answer: torch.Tensor) -> list[torch.Tensor]:
        """Label maps."""
        return list(answer.argmax(dim=1).to(torch.int16).cpu())

    def as_targets(self, predictions: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same."""
        return [prediction.long() for prediction in predictions]

    def quality(self, predictions: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> float:
        """Mean over the classes that occur of |both| / |either|, counted over all images."""
        highest = max(int(labels.max()) for labels in (*predictions, *targets)) + 1
        both = np.zeros((highest, highest), np.int64)
        for predicted, wanted in zip(predictions, targets, strict=True):
            counts = wanted != IGNORED
            pairs = wanted[counts].long() * highest + predicted[counts].long()
            both += torch.bincount(pairs, minlength=highest**2).reshape(highest, highest).numpy()
        hits = both.diagonal()
        either = both.sum(axis=0) + both.sum(axis=1) - hits
        return float((hits[either > 0] / either[either > 0]).mean()) if either.any() else 0.0


def _pixels(logits: torch.Tensor) -> torch.Tensor:
    """[N, classes, h, w] as [N · h · w, classes]."""
    return logits.movedim(1, -1).flatten(0, 2)
