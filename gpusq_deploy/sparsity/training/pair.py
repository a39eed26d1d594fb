"""What is trained by what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gpusq_deploy.sparsity.pruning.magnitude import Masks
from gpusq_deploy.sparsity.training.tasks.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Distilled:
    """The model to recover, the one it came from, their task, and the weights it may keep; all on one device.

    `scales` are trained with the student's parameters; `weights` are those of the compared blocks, None: all 1.
    `sharded`: each process holds a part of the models' parameters and of the masks.
    """

    student: torch.nn.Module
    teacher: torch.nn.Module
    masks: Masks
    task: Task
    scales: Sequence[torch.nn.Parameter] = ()
    weights: tuple[float, ...] | None = None
    sharded: bool = False

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return next(self.student.parameters()).device


class Snapshot(NamedTuple):
    """A student as it was after an epoch, 0 for the start, and its validation score."""

    epoch: int
    score: float
    tensors: dict[str, torch.Tensor]
    scales: list[torch.Tensor]

    @classmethod
    def of(cls, pair: Distilled, epoch: int, found: float) -> Snapshot:
        """A copy of it as it is."""
        tensors = {name: tensor.detach().clone() for name, tensor in pair.student.state_dict().items()}
        return cls(epoch, found, tensors, [scale.detach().clone() for scale in pair.scales])

    def restore(self, pair: Distilled) -> None:
        """Make it that again."""
        pair.student.load_state_dict(self.tensors)
        with torch.no_grad():
            for scale, kept in zip(pair.scales, self.scales, strict=True):
                scale.copy_(kept)
