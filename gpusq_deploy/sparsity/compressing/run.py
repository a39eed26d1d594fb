"""What the steps of one compression share, and what each gives the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from gpusq_deploy.artifacts import (
    Recipe,
    SparsityRecord,
)
from gpusq_deploy.frontend import (
    Checkpoint,
)
from gpusq_deploy.sparsity.compressing.request import CompressReporter, CompressRequest
from gpusq_deploy.sparsity.pruning.magnitude import (
    LayerChoice,
)
from gpusq_deploy.sparsity.reconstruction.reconstruct import Reconstruction
from gpusq_deploy.sparsity.training.distill import Recovery, recover
from gpusq_deploy.sparsity.training.distributed import Ranks
from gpusq_deploy.sparsity.training.keeping import Start
from gpusq_deploy.sparsity.training.options import DistillOptions
from gpusq_deploy.sparsity.training.pair import Distilled
from gpusq_deploy.sparsity.training.qat import (
    InputScales,
    Int8Layers,
)
from gpusq_deploy.sparsity.training.resume import ResumeFolder
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.scoring import Scores
from gpusq_deploy.sparsity.training.sharded_keeper import keeper_of
from gpusq_deploy.sparsity.training.tasks.task import Task


class Opened(NamedTuple):
    """What a request names, read: the model, who teaches it, what is pruned, and what is trained in INT8."""

    checkpoint: Checkpoint
    teacher: Checkpoint
    choice: LayerChoice
    int8: Int8Layers | None
    recipe: Recipe

    @property
    def pruned_before(self) -> SparsityRecord | None:
        """Where the model is 2:4 already and keeps its pattern."""
        return self.checkpoint.sparsity


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What all steps of one compression share; `notes` grows.

    `features` where the model returns no logits. `images` are those that prune and calibrate, read once.
    """

    request: CompressRequest
    reporter: CompressReporter
    processes: Ranks
    opened: Opened
    task: Task
    data: TrainingData
    images: Callable[[], torch.Tensor]
    measured: Callable[[torch.nn.Module], Scores]
    features: bool
    state: ResumeFolder
    notes: list[str] = field(default_factory=list[str])

    def say(self, *lines: str) -> None:
        """Tell, and keep for the record."""
        for line in lines:
            self.reporter.say(line)
        self.notes.extend(lines)

    @property
    def method(self) -> str:
        """How the weights were chosen."""
        before = self.opened.pruned_before
        return self.request.method if before is None else before.method


class Recovered(NamedTuple):
    """The sparse model, how it came about, and what its recovery tells."""

    module: torch.nn.Module
    method: str
    training: Recovery | None = None
    reconstruction: Reconstruction | None = None


class Quantized(NamedTuple):
    """What was made in INT8: the layers, their inputs' scales, the scores before and after, and how, if at all."""

    layers: Int8Layers
    scales: InputScales
    before: float
    after: float
    method: str


def trained_by(run: Run, pair: Distilled, options: DistillOptions, stage: str) -> Recovery:
    """Train a student in place, as one stage of the run: heard, and kept to go on from."""
    keeper = keeper_of(run.state, stage, fsdp=options.fsdp)
    return recover(pair, run.data, options, run.reporter.epoch, told=run.reporter.step, keeper=keeper)


def pair_of(run: Run, start: Start) -> Distilled:
    """The pruned student and its teacher, as training takes them."""
    return Distilled(student=start.student, teacher=start.teacher, masks=start.masks, task=run.task)
