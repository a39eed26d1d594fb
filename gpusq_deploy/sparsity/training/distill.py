"""Recover a pruned model by distillation from the dense one it came from.

    L = alpha · L_hard + beta · L_soft + gamma · L_feature        alpha = 1, beta = 10, gamma = 5

As reported for GPUSQ-ViT (Yu, Chen, Gan, Fan, CVPR 2023, arXiv 2305.10727): the weights and the three terms come
from summaries of the paper at second hand, not from its text. Temperature, the norm of the feature term, optimiser
and learning rate are not reported there; those below are our own choice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.nn import functional

from gpusq_deploy.artifacts import Value
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.pruning.magnitude import Masks, apply_masks
from gpusq_deploy.sparsity.training.blocks import first_tensor, repeated_blocks
from gpusq_deploy.sparsity.training.data import Batch, Samples, TrainingData

_TINY = 1e-12


class DistillOptions(Value):
    """How to recover. `learning_rate` is the peak of a cosine that ends at 0; the optimiser is AdamW."""

    epochs: int
    learning_rate: float
    batch_size: int
    seed: int
    alpha: float = 1.0
    beta: float = 10.0
    gamma: float = 5.0
    temperature: float = 2.0
    weight_decay: float = 0.01


class EpochResult(Value):
    """One epoch: mean loss, and the held-out scores after it. `accuracy` is None where there are no labels."""

    epoch: int
    epochs: int
    loss: float
    accuracy: float | None
    agreement: float


class Scores(NamedTuple):
    """Share of samples predicted as labelled (None without labels), and as the teacher predicts."""

    accuracy: float | None
    agreement: float


def hard_loss(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """Cross entropy of the student's logits [N, classes] on labels [N], or on the teacher's predictions without."""
    return functional.cross_entropy(student, teacher.argmax(dim=1) if labels is None else labels)


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over samples.

    T² keeps the gradient's size independent of T: Hinton, Vinyals, Dean, arXiv 1503.02531.
    """
    student_log = functional.log_softmax(student / temperature, dim=1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=1)
    divergence = functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def feature_losses(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], agree: torch.Tensor
) -> torch.Tensor:
    """Of each block, MSE(student, teacher) / Var(teacher), over the samples where both predict one class.

    Args:
        student: The student's block outputs, each [N, ...].
        teacher: The teacher's, of the same shapes.
        agree: Booleans [N].

    Returns:
        [blocks]; zeros where no sample agrees.
    """
    if not student or not bool(agree.any()):
        return torch.zeros(len(student), device=agree.device)
    terms = [
        functional.mse_loss(ours[agree], theirs[agree]) / theirs[agree].var(correction=0).clamp_min(_TINY)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms)


def block_weights(losses: Sequence[float]) -> tuple[float, ...]:
    """Weights of blocks in the feature term of quantisation-aware training: 1 / loss, scaled to a mean of 1.

    A larger loss in the first stage gives a smaller weight, as reported for GPUSQ-ViT; the formula is our own choice.

    Args:
        losses: The first stage's feature losses, of each block.
    """
    inverse = [1 / max(loss, _TINY) for loss in losses]
    return tuple(weight * len(inverse) / sum(inverse) for weight in inverse)


def later_blocks(module: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
    """The later blocks of `repeated_blocks`; empty where it finds none."""
    return tuple(module.get_submodule(name) for name in repeated_blocks(module).later)


def count_classes(module: torch.nn.Module, samples: Samples) -> int:
    """Number of logits that the model returns for one of the samples."""
    with torch.no_grad():
        return int(_logits(module, samples.batch([0]).images).shape[1])


def predict(module: torch.nn.Module, samples: Samples, batch_size: int) -> torch.Tensor:
    """Predicted classes of all samples, int64 [N] on the CPU, in eval mode; the module's mode is kept."""
    training = module.training
    module.eval()
    with torch.no_grad():
        found = [
            _logits(module, samples.batch(range(start, min(start + batch_size, len(samples)))).images)
            .argmax(dim=1)
            .cpu()
            for start in range(0, len(samples), batch_size)
        ]
    module.train(training)
    return torch.cat(found)


def score(module: torch.nn.Module, samples: Samples, teacher: torch.Tensor, batch_size: int) -> Scores:
    """Score a model on samples against their labels and the teacher's predictions [N]."""
    predicted = predict(module, samples, batch_size)
    labels = samples.labels
    accuracy = None if labels is None else float((predicted == torch.from_numpy(labels)).double().mean())
    return Scores(accuracy, float((predicted == teacher).double().mean()))


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitPair:
    """The model to recover, the one it came from, and the weights it may keep; all on one device.

    `scales` are trained with the student's parameters; `weights` are those of the compared blocks, None: all 1.
    """

    student: torch.nn.Module
    teacher: torch.nn.Module
    masks: Masks
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
    pair: LogitPair, data: TrainingData, options: DistillOptions, report: Callable[[EpochResult], None]
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
        GpusqError: The loss became infinite or NaN, or a model's output isn't logits.
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
            scores = judge.held_out()
            report(EpochResult(epoch=epoch, epochs=options.epochs, loss=losses.total, **scores._asdict()))
    best.restore(pair)
    pair.student.requires_grad_(requires_grad=False).eval()
    return Recovery(epoch=best.epoch, kept=best.score, start=start, last=last, block_losses=losses.blocks)


def _parameter_groups(pair: LogitPair, options: DistillOptions) -> list[dict[str, Any]]:
    weights = list(pair.student.requires_grad_(requires_grad=True).parameters())
    # Decay would pull a logarithm towards the scale 1.
    return [
        {"params": weights, "weight_decay": options.weight_decay},
        *([{"params": list(pair.scales), "weight_decay": 0.0}] if pair.scales else []),
    ]


class _Judge:
    """Scores the student on the samples that training doesn't see."""

    def __init__(self, pair: LogitPair, data: TrainingData, batch_size: int) -> None:
        self._student, self._data, self._size = pair.student, data, batch_size
        self._held_out = predict(pair.teacher, data.held_out, batch_size)
        self._validation = predict(pair.teacher, data.validation, batch_size)

    def held_out(self) -> Scores:
        return score(self._student, self._data.held_out, self._held_out, self._size)

    def validation(self) -> float:
        """Accuracy, or agreement with the teacher where there are no labels."""
        found = score(self._student, self._data.validation, self._validation, self._size)
        return found.agreement if found.accuracy is None else found.accuracy


class _State(NamedTuple):
    """A student as it was after an epoch, and its validation score."""

    epoch: int
    score: float
    tensors: dict[str, torch.Tensor]
    scales: list[torch.Tensor]

    @classmethod
    def of(cls, pair: LogitPair, epoch: int, found: float) -> _State:
        tensors = {name: tensor.detach().clone() for name, tensor in pair.student.state_dict().items()}
        return cls(epoch, found, tensors, [scale.detach().clone() for scale in pair.scales])

    def restore(self, pair: LogitPair) -> None:
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
    pair: LogitPair
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    outputs: _Outputs


def _train_epoch(trainer: _Trainer, samples: Samples, options: DistillOptions, epoch: int) -> _Means:
    pair = trainer.pair
    total, blocks = 0.0, torch.zeros(len(later_blocks(pair.student)))
    for indices in _shuffled(len(samples), options, epoch):
        loss, features = _loss(pair, samples.batch(indices), options, trainer.outputs)
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
    pair: LogitPair, batch: Batch, options: DistillOptions, outputs: _Outputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss [], and the feature losses [blocks] in it."""
    pair.student.train()
    with torch.no_grad():
        teacher = _logits(pair.teacher, batch.images)
    student = _logits(pair.student, batch.images)
    labels = None if batch.labels is None else batch.labels.to(student.device)
    agree = student.argmax(dim=1) == teacher.argmax(dim=1)
    features = feature_losses(outputs.student, outputs.teacher, agree)
    weighted = features if pair.weights is None else features * features.new_tensor(pair.weights)
    loss = (
        options.alpha * hard_loss(student, teacher, labels)
        + options.beta * soft_loss(student, teacher, options.temperature)
        + options.gamma * (weighted.mean() if len(features) else 0.0)
    )
    return loss, features


def _logits(module: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    device = next(module.parameters()).device
    logits = module(images.to(device))
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise GpusqError(
            f"gpusq-compress needs one output, logits [N, classes] or without training features [N, ...]; the model "
            f"returns {_described(logits)}",
            place="the model's output",
            hint="--epochs 0 prunes a model of features alone; of several outputs, wrap it in a factory whose forward "
            "returns the one, or prune it in the build: gpusq-build --prune",
        )
    return logits


def _described(answer: Any) -> str:
    """Shapes of an answer that isn't logits."""
    if isinstance(answer, torch.Tensor):
        return str(list(answer.shape))
    if not isinstance(answer, (tuple, list)):
        return f"a {type(answer).__name__}"
    entries = cast("Sequence[Any]", answer)
    return f"{len(entries)}: {', '.join(_described(entry) for entry in entries)}"


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
