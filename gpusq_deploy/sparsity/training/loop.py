"""One training step after another: the loss, its gradient, and what is refused of them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.nn.parallel import DistributedDataParallel

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.pruning.magnitude import apply_masks
from gpusq_deploy.sparsity.training.distributed import Ranks, Share
from gpusq_deploy.sparsity.training.diverged import divergence, finite, first_bad_gradient, first_bad_output
from gpusq_deploy.sparsity.training.losses import feature_losses
from gpusq_deploy.sparsity.training.optim import Average
from gpusq_deploy.sparsity.training.options import DistillOptions, StepResult
from gpusq_deploy.sparsity.training.order import batches, seed_step
from gpusq_deploy.sparsity.training.pair import Distilled
from gpusq_deploy.sparsity.training.samples import Batch, Samples
from gpusq_deploy.sparsity.training.sharding import average_gradients
from gpusq_deploy.text import counted

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Below it FP16's gradients overflow whatever they are scaled by.
_LEAST_SCALE = 2.0**-14


class Outputs(NamedTuple):
    """Of the compared blocks, in the latest forward pass."""

    student: deque[torch.Tensor]
    teacher: deque[torch.Tensor]


class Terms(NamedTuple):
    """The loss [] and its terms, hard [], soft [] and features [blocks], of one process's share of a batch."""

    loss: torch.Tensor
    hard: torch.Tensor
    soft: torch.Tensor
    features: torch.Tensor


@dataclass(kw_only=True, slots=True)
class Sums:
    """Over an epoch's samples until now: of the loss, and of the compared blocks' feature losses."""

    loss: float = 0.0
    blocks: list[float] = field(default_factory=list[float])

    def add(self, loss: float, blocks: Sequence[float], count: int) -> None:
        """One batch of so many samples, by its means."""
        self.loss += loss * count
        before = self.blocks or [0.0] * len(blocks)
        self.blocks = [total + block * count for total, block in zip(before, blocks, strict=True)]


class _Answering(torch.nn.Module):
    """The student as its task asks it, with its scales among its parameters: what DistributedDataParallel wraps."""

    def __init__(self, pair: Distilled) -> None:
        super().__init__()
        self.student, self.scales, self._task = pair.student, torch.nn.ParameterList(pair.scales), pair.task

    def forward(self, images: torch.Tensor) -> Any:
        return self._task.answer(self.student, images)


def answering(pair: Distilled, ranks: Ranks) -> Callable[[torch.Tensor], Any]:
    """What answers for the student: images in, the task's answer out; its gradients are averaged over processes."""
    whole = _Answering(pair)
    if ranks.world == 1 or pair.sharded:
        return whole
    on = [pair.device] if pair.device.type == "cuda" else None
    # A model may hold parameters that no answer of it needs, such as a mask token: the first step tells which.
    return DistributedDataParallel(whole, device_ids=on, static_graph=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """All that a step needs. `average` and what torch holds here change with each."""

    pair: Distilled
    samples: Samples
    options: DistillOptions
    ranks: Ranks
    answer: Callable[[torch.Tensor], Any]
    outputs: Outputs
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    scaler: torch.amp.GradScaler
    average: Average

    def batches(self, epoch: int) -> list[list[int]]:
        """The indices of each step."""
        return batches(len(self.samples), self.options.batch_size, self.options.seed, epoch)

    def epoch(self, epoch: int, first: int, sums: Sums, told: Callable[[StepResult], None]) -> Generator[int]:
        """Train the epoch's steps from `first`, from 0, on; yields how many are done after each."""
        steps = self.batches(epoch)
        began, seen = time.monotonic(), 0
        for done, indices in enumerate(steps[first:], first + 1):
            hard, soft, feature = self._step(indices, epoch, done, sums)
            seen += len(indices)
            told(
                StepResult(
                    epoch=epoch,
                    epochs=self.options.epochs,
                    step=done,
                    steps=len(steps),
                    hard=hard,
                    soft=soft,
                    feature=feature,
                    rate=seen / max(time.monotonic() - began, 1e-9),
                )
            )
            yield done

    def _step(self, indices: Sequence[int], epoch: int, step: int, sums: Sums) -> tuple[float, float, float]:
        """The hard, soft and feature loss over the whole batch, after which the student is another one."""
        share, place = self.ranks.share(indices), f"epoch {epoch}, step {step}"
        batch = self.samples.batch(share.indices, epoch)
        seed_step(self.options.seed, epoch, step, self.ranks.rank)
        self.pair.student.train()
        terms = self._terms(batch, share)
        heads = torch.stack([terms.loss, terms.hard, terms.soft])
        means = self.ranks.total(torch.cat([heads, terms.features]).float()) / self.ranks.world
        loss, hard, soft, *blocks = (float(mean) for mean in means)
        if not math.isfinite(loss):
            raise self._diverged(loss, batch, place)
        sums.add(loss, blocks, len(indices))
        self.optimizer.zero_grad()
        torch.autograd.backward(self.scaler.scale(terms.loss))
        if self.pair.sharded:
            average_gradients(self.pair.scales, self.ranks)
        self._require_finite_gradients(loss, place)
        self._update()
        return hard, soft, sum(blocks) / max(1, len(blocks))

    def _update(self) -> None:
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        apply_masks(self.pair.student, self.pair.masks)
        if self.pair.sharded:  # as DistributedDataParallel does: a BatchNorm's are those of the first process
            self.ranks.same(list(self.pair.student.buffers()))
        if self.scaler.get_scale() >= scale:  # else the step was skipped
            self.schedule.step()
            self.average.update()

    def _terms(self, batch: Batch, share: Share) -> Terms:
        pair, task, options = self.pair, self.pair.task, self.options
        with self._lower_precision():
            with torch.no_grad():
                teacher = _wide(task.answer(pair.teacher, batch.images))
            student = _wide(self._answered(batch.images))
        targets = task.as_targets(task.predictions(teacher)) if batch.targets is None else batch.targets
        found = task.losses(pair.student, student, teacher, targets)
        agree = found.agree if share.factor else torch.zeros_like(found.agree)
        ours, theirs = ([_wide(output) for output in outputs] for outputs in self.outputs)
        features = feature_losses(ours, theirs, agree, self.ranks)
        weighted = features if pair.weights is None else features * features.new_tensor(pair.weights)
        hard, soft = found.hard * share.factor, found.soft * share.factor
        loss = options.alpha * hard + options.beta * soft
        if len(features):
            loss = loss + options.gamma * weighted.mean()
        return Terms(loss, hard.detach(), soft.detach(), features.detach())

    def _answered(self, images: torch.Tensor) -> Any:
        try:
            return self.answer(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise GpusqError(
                "a BatchNorm has no variance of one image",
                place=f"a batch of {self.options.batch_size} for {counted(self.ranks.world, 'process')}",
                hint="give two images and more to each: --batch-size",
            ) from error

    def _lower_precision(self) -> torch.autocast:
        amp = self.options.amp
        return torch.autocast(self.pair.device.type, dtype=_DTYPES.get(amp or "bf16"), enabled=amp is not None)

    def _require_finite_gradients(self, loss: float, place: str) -> None:
        """FP16's scaler skips a step whose gradient overflows, and tries the next with a smaller scale."""
        if self.scaler.is_enabled():
            if self.scaler.get_scale() < _LEAST_SCALE:
                raise divergence(loss, ", and FP16 holds its gradient at no scale", place)
            return
        trained = [*self.pair.student.parameters(), *self.pair.scales]
        if not finite([value.grad for value in trained if value.grad is not None]):
            named = first_bad_gradient(self.pair.student) or ", the gradient of a scale of INT8 isn't finite"
            raise divergence(loss, named, place)

    def _diverged(self, loss: float, batch: Batch, place: str) -> GpusqError:
        def forward() -> None:
            with self._lower_precision():
                self.pair.task.answer(self.pair.student, batch.images)

        return divergence(loss, first_bad_output(self.pair.student, forward), place)


@contextmanager
def own_random_state() -> Generator[None]:
    """While it is active, what is drawn leaves torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        yield


def _wide(answer: Any) -> Any:
    """float32 of a tensor in a lower precision; other answers are the task's own."""
    low = isinstance(answer, torch.Tensor) and answer.dtype in _DTYPES.values()
    return answer.float() if low else answer
