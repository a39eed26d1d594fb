"""Recover a pruned model by distillation from the dense one it came from.

The loss is that of `losses`, its hard and soft term the task's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.pruning.magnitude import apply_masks
from gpusq_deploy.sparsity.training.blocks import first_tensor, repeated_blocks
from gpusq_deploy.sparsity.training.distributed import Ranks, ranks
from gpusq_deploy.sparsity.training.loop import Outputs, Sums, Trainer, answering, own_random_state
from gpusq_deploy.sparsity.training.losses import feature_losses
from gpusq_deploy.sparsity.training.optim import Average, optimizer_of, schedule_of
from gpusq_deploy.sparsity.training.options import DistillOptions, EpochResult, StepResult
from gpusq_deploy.sparsity.training.order import batches
from gpusq_deploy.sparsity.training.pair import Distilled, Snapshot
from gpusq_deploy.sparsity.training.recompute import recomputed
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.scoring import Scores, predict, score
from gpusq_deploy.sparsity.training.sharding import fully_sharded
from gpusq_deploy.sparsity.training.state import Keeper, NoKeeper, Progress, restore, state_of
from gpusq_deploy.sparsity.training.tasks.task import Task


def later_blocks(module: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
    """The later blocks of `repeated_blocks`; empty where it finds none."""
    return tuple(module.get_submodule(name) for name in repeated_blocks(module).later)


class Recovery(NamedTuple):
    """The epoch that is kept, 0 for the start; its score, the start's and the last one's on the validation samples.

    `block_losses` are the mean feature losses of the compared blocks over the last epoch.
    """

    epoch: int
    kept: float
    start: float
    last: float
    block_losses: tuple[float, ...]


def feature_errors(pair: Distilled, images: torch.Tensor) -> list[float]:
    """Of each compared block, MSE(student, teacher) / Var(teacher) on images; 2 where they have nothing in common."""
    with torch.no_grad(), later_outputs(pair.student) as ours, later_outputs(pair.teacher) as theirs:
        for module in (pair.student, pair.teacher):
            pair.task.answer(module, images)
        every = torch.ones(len(images), dtype=torch.bool, device=pair.device)
        return [float(error) for error in feature_losses(ours, theirs, every)]


class _Heard(NamedTuple):
    epoch: Callable[[EpochResult], None]
    step: Callable[[StepResult], None]


def _untold(_result: StepResult) -> None:
    """Nobody listens."""


def recover(
    pair: Distilled,
    data: TrainingData,
    options: DistillOptions,
    report: Callable[[EpochResult], None],
    *,
    told: Callable[[StepResult], None] = _untold,
    keeper: Keeper | None = None,
) -> Recovery:
    """Train the student in place, and keep the best by the validation samples. Masked weights stay zero.

    A CPU repeats it to the bit for one seed, one torch version and one number of threads, however often it was
    stopped and went on from what `keeper` kept. In a process group of torch.distributed each process sees its share of
    each batch, and all end with the same student.

    Args:
        pair: Student and teacher; only the student and its scales change, and it ends in eval mode.
        data: Training samples, validation samples, which choose an epoch or the start, and held-out ones, which are
            scored after each epoch and choose nothing.
        options: See `DistillOptions`.
        report: Called after each epoch, in each process.
        told: Called after each step, in each process.
        keeper: Keeps the state of the first process; None: nobody does.

    Raises:
        GpusqError: The loss or a gradient became infinite or NaN, or a model's answer isn't one of its task.
    """
    processes = ranks()
    with fully_sharded(pair, processes) if options.fsdp else nullcontext(pair) as trained:
        found = _recovered(trained, data, options, _Heard(report, told), keeper or NoKeeper())
    pair.student.requires_grad_(requires_grad=False).eval()
    return found


def _recovered(pair: Distilled, data: TrainingData, options: DistillOptions, heard: _Heard, keeper: Keeper) -> Recovery:
    apply_masks(pair.student, pair.masks)
    processes = ranks()
    judge = _Judge(pair, data, options.batch_size, processes)
    with ExitStack() as stack:
        stack.enter_context(own_random_state())
        ours, theirs = (stack.enter_context(later_outputs(module)) for module in (pair.student, pair.teacher))
        if options.recompute:
            stack.enter_context(recomputed(pair.student))
        trainer = _trainer(pair, data, options, Outputs(ours, theirs), processes)
        progress = _train(trainer, judge, heard, keeper)
    progress.best.restore(pair)
    blocks = tuple(block / len(data.train) for block in progress.before.blocks)
    best = progress.best
    return Recovery(epoch=best.epoch, kept=best.score, start=progress.start, last=progress.last, block_losses=blocks)


def _trainer(
    pair: Distilled, data: TrainingData, options: DistillOptions, outputs: Outputs, processes: Ranks
) -> Trainer:
    optimizer = optimizer_of(pair, options)
    steps = len(batches(len(data.train), options.batch_size, options.seed, 1))
    return Trainer(
        pair=pair,
        samples=data.train,
        options=options,
        ranks=processes,
        answer=answering(pair, processes),
        outputs=outputs,
        optimizer=optimizer,
        schedule=schedule_of(optimizer, options, steps),
        scaler=torch.amp.GradScaler(pair.device.type, enabled=options.amp == "fp16"),
        average=Average(pair, options.ema),
    )


def _train(trainer: Trainer, judge: _Judge, heard: _Heard, keeper: Keeper) -> Progress:
    """From the start, or from what was kept, to the end of the last epoch."""
    state = keeper.load()
    progress = _begun(trainer.pair, judge) if state is None else restore(trainer, state)
    epochs = trainer.options.epochs
    while progress.epoch <= epochs:
        for done in trainer.epoch(progress.epoch, progress.step, progress.sums, heard.step):
            progress.step = done
            if keeper.due(epoch_ended=False):
                keeper.save(state_of(trainer, progress))
        with trainer.average.worn():
            progress.last = judge.validation()
            if progress.last >= progress.best.score:
                progress.best = Snapshot.of(trainer.pair, progress.epoch, progress.last)
            scores = judge.held_out()
        mean = progress.sums.loss / len(trainer.samples)
        told = _result(trainer.pair.task, trainer.options, progress.epoch, mean, scores)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.before, progress.sums = progress.sums, Sums()
        if keeper.due(epoch_ended=True):
            keeper.save(state_of(trainer, progress))
        heard.epoch(told)
    return progress


def _begun(pair: Distilled, judge: _Judge) -> Progress:
    found = judge.validation()
    return Progress(best=Snapshot.of(pair, 0, found), start=found, last=found)


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

    def __init__(self, pair: Distilled, data: TrainingData, batch_size: int, processes: Ranks) -> None:
        self._pair, self._data, self._size, self._processes = pair, data, batch_size, processes
        self._held_out = predict(pair.task, pair.teacher, data.held_out, batch_size)
        self._validation = predict(pair.task, pair.teacher, data.validation, batch_size)

    def held_out(self) -> Scores:
        return score(self._pair.task, self._pair.student, self._data.held_out, self._held_out, self._size)

    def validation(self) -> float:
        """By the labels, or by the teacher's predictions where there are none; the first process's, so all keep one."""
        samples = self._data.validation
        found = score(self._pair.task, self._pair.student, samples, self._validation, self._size).main
        return self._processes.from_first(found)


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
