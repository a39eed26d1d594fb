"""Recover a pruned model by distillation from the dense one it came from.

The loss is that of `losses`, its hard and soft term the task's.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from gpusq_deploy.artifacts import Value
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.pruning.magnitude import Masks, apply_masks
from gpusq_deploy.sparsity.training.blocks import first_tensor, repeated_blocks
from gpusq_deploy.sparsity.training.losses import feature_losses
from gpusq_deploy.sparsity.training.samples import Batch, Samples, TrainingData
from gpusq_deploy.sparsity.training.scoring import Scores, predict, score
from gpusq_deploy.sparsity.training.tasks.task import Measure, Task


class DistillOptions(Value):
    """How to recover. `learning_rate` is the peak of a cosine that ends at 0; the optimiser is AdamW."""

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    alpha: float = 1.0
    beta: float = 10.0
    gamma: float = 5.0
    weight_decay: float = 0.01


class EpochResult(Value):
    """One epoch: mean loss, and the held-out scores after it, 0…1. `score` is None where there are no labels."""

    epoch: int
    epochs: int
    loss: float
    measure: Measure
    score: float | None
    agreement: float


def later_blocks(module: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
    """The later blocks of `repeated_blocks`; empty where it finds none."""
    return tuple(module.get_submodule(name) for name in repeated_blocks(module).later)


@dataclass(frozen=True, kw_only=True, slots=True)
class Distilled:
    """The model to recover, the one it came from, their task, and the weights it may keep; all on one device.

    `scales` are trained with the student's parameters; `weights` are those of the compared blocks, None: all 1.
    """

    student: torch.nn.Module
    teacher: torch.nn.Module
    masks: Masks
    task: Task
    scales: Sequence[torch.nn.Parameter] = ()
    weights: tuple[float, ...] | None = None


class Recovery(NamedTuple):
    """The epoch that is kept, 0 for the start; its score, the start's and the last one's on the validation samples.

    `block_losses` are the mean feature losses of the compared blocks over the last epoch.
    """

    epoch: int
    kept: float
    start: float
    last: float
    block_losses: tuple[float, ...]


def recover(
    pair: Distilled, data: TrainingData, options: DistillOptions, report: Callable[[EpochResult], None]
) -> Recovery:
    """Train the student in place, and keep the best by the validation samples. Masked weights stay zero.

    A CPU repeats it to the bit for one seed, one torch version and one number of threads.

    Args:
        pair: Student and teacher; only the student and its scales change, and it ends in eval mode.
        data: Training samples, validation samples, which choose an epoch or the start, and held-out ones, which are
            scored after each epoch and choose nothing.
        options: See `DistillOptions`.
        report: Called after each epoch.

    Raises:
        GpusqError: The loss became infinite or NaN, or a model's answer isn't one of its task.
    """
    apply_masks(pair.student, pair.masks)
    steps = max(1, options.epochs * math.ceil(len(data.train) / options.batch_size))
    optimizer = torch.optim.AdamW(_parameter_groups(pair, options), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    judge = _Judge(pair, data, options.batch_size)
    with torch.random.fork_rng(devices=[]), later_outputs(pair.student) as ours, later_outputs(pair.teacher) as theirs:
        torch.manual_seed(options.seed)
        trainer = _Trainer(pair, optimizer, schedule, _Outputs(ours, theirs))
        best, losses = _State.of(pair, 0, judge.validation()), _Means()
        start = last = best.score
        for epoch in range(1, options.epochs + 1):
            losses = _train_epoch(trainer, data.train, options, epoch)
            last = judge.validation()
            best = best if last < best.score else _State.of(pair, epoch, last)
            report(_result(pair.task, options, epoch, losses.total, judge.held_out()))
    best.restore(pair)
    pair.student.requires_grad_(requires_grad=False).eval()
    return Recovery(epoch=best.epoch, kept=best.score, start=start, last=last, block_losses=losses.blocks)


def _parameter_groups(pair: Distilled, options: DistillOptions) -> list[dict[str, Any]]:
    weights = list(pair.student.requires_grad_(requires_grad=True).parameters())
    # Decay would pull a logarithm towards the scale 1.
    return [
        {"params": weights, "weight_decay": options.weight_decay},
        *([{"params": list(pair.scales), "weight_decay": 0.0}] if pair.scales else []),
    ]


def _result(task: Task, options: DistillOptions, epoch: int, loss: float, scores: Scores) -> EpochResult:
    return EpochResult(
        epoch=epoch,
        epochs=options.epochs,
        loss=loss,
        measure=task.measure,
        score=scores.labelled,
        agreement=scores.agreement,
    )


class _Judge:
    """Scores the student on the samples that training doesn't see."""

    def __init__(self, pair: Distilled, data: TrainingData, batch_size: int) -> None:
        self._pair, self._data, self._size = pair, data, batch_size
        self._held_out = predict(pair.task, pair.teacher, data.held_out, batch_size)
        self._validation = predict(pair.task, pair.teacher, data.validation, batch_size)

    def held_out(self) -> Scores:
        return score(self._pair.task, self._pair.student, self._data.held_out, self._held_out, self._size)

    def validation(self) -> float:
        """By the labels, or by the teacher's predictions where there are none."""
        samples = self._data.validation
        return score(self._pair.task, self._pair.student, samples, self._validation, self._size).main


class _State(NamedTuple):
    """A student as it was after an epoch, and its validation score."""

    epoch: int
    score: float
    tensors: dict[str, torch.Tensor]
    scales: list[torch.Tensor]

    @classmethod
    def of(cls, pair: Distilled, epoch: int, found: float) -> _State:
        tensors = {name: tensor.detach().clone() for name, tensor in pair.student.state_dict().items()}
        return cls(epoch, found, tensors, [scale.detach().clone() for scale in pair.scales])

    def restore(self, pair: Distilled) -> None:
        pair.student.load_state_dict(self.tensors)
        with torch.no_grad():
            for scale, kept in zip(pair.scales, self.scales, strict=True):
                scale.copy_(kept)


class _Means(NamedTuple):
    """Of an epoch: the mean loss, and the mean feature loss of each compared block."""

    total: float = 0.0
    blocks: tuple[float, ...] = ()


class _Outputs(NamedTuple):
    student: deque[torch.Tensor]
    teacher: deque[torch.Tensor]


class _Trainer(NamedTuple):
    pair: Distilled
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    outputs: _Outputs


def _train_epoch(trainer: _Trainer, samples: Samples, options: DistillOptions, epoch: int) -> _Means:
    pair = trainer.pair
    total, blocks = 0.0, torch.zeros(len(later_blocks(pair.student)))
    for indices in _shuffled(len(samples), options, epoch):
        loss, features = _loss(pair, samples.batch(indices, epoch), options, trainer.outputs)
        total += _require_finite(loss, epoch) * len(indices)
        blocks += features.detach().cpu() * len(indices)
        trainer.optimizer.zero_grad()
        torch.autograd.backward(loss)
        trainer.optimizer.step()
        trainer.schedule.step()
        apply_masks(pair.student, pair.masks)
    return _Means(total / len(samples), tuple(float(block) / len(samples) for block in blocks))


@contextmanager
def later_outputs(module: torch.nn.Module) -> Generator[deque[torch.Tensor], None, None]:
    """The outputs of `later_blocks` in the latest forward pass, older ones dropped, while the block lasts."""
    blocks = later_blocks(module)
    outputs: deque[torch.Tensor] = deque(maxlen=len(blocks))

    def keep(block: torch.nn.Module, _inputs: Any, output: Any) -> None:
        hidden = first_tensor(output)
        if hidden is None:
            raise GpusqError(
                f"a {type(block).__name__} returns a {type(output).__name__} that doesn't begin with a tensor",
                place="the model's blocks",
                hint="let the blocks return their hidden states first",
            )
        outputs.append(hidden)

    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _loss(
    pair: Distilled, batch: Batch, options: DistillOptions, outputs: _Outputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss [], and the feature losses [blocks] in it."""
    pair.student.train()
    task = pair.task
    with torch.no_grad():
        teacher = task.answer(pair.teacher, batch.images)
    student = task.answer(pair.student, batch.images)
    targets = task.as_targets(task.predictions(teacher)) if batch.targets is None else batch.targets
    terms = task.losses(pair.student, student, teacher, targets)
    features = feature_losses(outputs.student, outputs.teacher, terms.agree)
    weighted = features if pair.weights is None else features * features.new_tensor(pair.weights)
    loss = (
        options.alpha * terms.hard
        + options.beta * terms.soft
        + options.gamma * (weighted.mean() if len(features) else 0.0)
    )
    return loss, features


def _shuffled(count: int, options: DistillOptions, epoch: int) -> list[list[int]]:
    order = [int(index) for index in np.random.default_rng((options.seed, epoch)).permutation(count)]
    batches = [order[start : start + options.batch_size] for start in range(0, count, options.batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:  # BatchNorm has no variance of one sample
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def _require_finite(loss: torch.Tensor, epoch: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise GpusqError(
            f"training diverged: the loss is {value}", place=f"epoch {epoch}", hint="lower --lr, say to a tenth"
        )
    return value
