"""Where a training stands, to go on from it after its process was killed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.diverged import finite
from gpusq_deploy.sparsity.training.loop import Sums, Trainer
from gpusq_deploy.sparsity.training.optim import take_rate
from gpusq_deploy.sparsity.training.pair import Snapshot


class Keeper(Protocol):
    """Who keeps the state of a training."""

    def load(self) -> dict[str, Any] | None:
        """The latest state; None where there is none."""
        ...

    def due(self, *, epoch_ended: bool) -> bool:
        """Asked after each step and epoch: whether to save."""
        ...

    def save(self, state: Mapping[str, Any]) -> None:
        """Keep plain values and tensors, whole, in place of what was there."""
        ...


class NoKeeper:
    """Keeps nothing."""

    def load(self) -> None:
        """Nothing."""

    def due(self, *, epoch_ended: bool) -> bool:
        """Never."""
        del epoch_ended
        return False

    def save(self, state: Mapping[str, Any]) -> None:
        """Forget it."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a training is: the epoch and how many of its steps are done, its sums, those of the epoch before it.

    `start`, `last` and `best` are validation scores and the student of the best.
    """

    best: Snapshot
    start: float
    last: float
    epoch: int = 1
    step: int = 0
    sums: Sums = field(default_factory=Sums)
    before: Sums = field(default_factory=Sums)


def state_of(trainer: Trainer, progress: Progress) -> dict[str, Any]:
    """All that the rest of a training depends on, but for what it is asked: order and random draws follow from that.

    Raises:
        GpusqError: A weight isn't finite: such a state is good for nothing.
    """
    pair = trainer.pair
    weights = dict(pair.student.named_parameters())
    if not finite([*weights.values(), *pair.scales]):
        bad = next((name for name, value in weights.items() if not finite([value])), "a scale of INT8")
        raise GpusqError(
            f"training diverged: {bad} isn't finite",
            place=f"epoch {progress.epoch}, step {progress.step}",
            hint="lower --lr, say to a tenth: with --resume it goes on from the last good state",
        )
    return {
        "epoch": progress.epoch,
        "step": progress.step,
        "sums": _plain(progress.sums),
        "before": _plain(progress.before),
        "start": progress.start,
        "last": progress.last,
        "best": progress.best._asdict(),
        "student": pair.student.state_dict(),
        "scales": [scale.detach() for scale in pair.scales],
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "average": trainer.average.state_dict(),
    }


def restore(trainer: Trainer, state: Mapping[str, Any]) -> Progress:
    """Make a trainer what it was when `state_of` was asked; the rate's peak is what is asked now."""
    now = Snapshot(0, 0.0, state["student"], state["scales"])
    now.restore(trainer.pair)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.average.load_state_dict(state["average"])
    if trainer.schedule.base_lrs != [trainer.options.learning_rate] * len(trainer.optimizer.param_groups):
        take_rate(trainer.optimizer, trainer.schedule, trainer.options.learning_rate)
    return Progress(
        best=Snapshot(**state["best"]),
        start=state["start"],
        last=state["last"],
        epoch=state["epoch"],
        step=state["step"],
        sums=Sums(**state["sums"]),
        before=Sums(**state["before"]),
    )


def _plain(sums: Sums) -> dict[str, Any]:
    return {"loss": sums.loss, "blocks": list(sums.blocks)}
