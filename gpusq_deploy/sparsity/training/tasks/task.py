"""What the trainer asks of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch

Measure = Literal["accuracy", "mAP", "mIoU"]


class TaskLosses(NamedTuple):
    """The hard and the soft loss, both [], and for which samples, booleans [N], the blocks' features are compared."""

    hard: torch.Tensor
    soft: torch.Tensor
    agree: torch.Tensor


class Task(Protocol):
    """One kind of model. An answer is what its `forward` returns; a target is what a label says of one image."""

    @property
    def measure(self) -> Measure:
        """What `quality` is."""
        ...

    def answer(self, module: torch.nn.Module, images: torch.Tensor) -> Any:
        """The model's answer to images [N, channels, height, width], on the module's device.

        Raises:
            GpusqError: It isn't one of this task.
        """
        ...

    def losses(self, module: torch.nn.Module, student: Any, teacher: Any, targets: Sequence[Any]) -> TaskLosses:
        """Of the answers of the student, `module`, and of the teacher to one batch."""
        ...

    def predictions(self, answer: Any) -> list[Any]:
        """What an answer says of each image, on the CPU."""
        ...

    def as_targets(self, predictions: Sequence[Any]) -> list[Any]:
        """Predictions in the place of labels: where there are none, a teacher's."""
        ...

    def quality(self, predictions: Sequence[Any], targets: Sequence[Any]) -> float:
        """The measure, 0…1; more is better."""
        ...
