"""What gpusq-compress is asked for, and whom it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpusq_deploy.artifacts import (
    ArchSpec,
    CompressStage,
    PruneMethod,
)
from gpusq_deploy.sparsity.training.data.load import DataRequest
from gpusq_deploy.sparsity.training.options import DistillOptions, EpochResult, StepResult
from gpusq_deploy.sparsity.training.resume import Every


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressRequest:
    """What gpusq-compress is asked for.

    `recipe` says which layers are to be 2:4; None is the default one, as in a build.
    `dense` holds patterns of layers to leave alone beside those.
    `method` chooses the weights before any training; of the training images at most `prune_images` serve it.
    `permute` arranges channels first, so that 2:4 keeps more. Reconstruction takes the method `second-order`, and no
    epochs of training. `qat_epochs` of training in INT8 follow those of `training`; None: there are none.
    `teacher` is the dense checkpoint that teaches, None: `model` itself. With `resume` an interrupted run of the same
    request goes on; its state is kept `every` so often.
    """

    model: Path
    arch: ArchSpec | None
    data: DataRequest
    dense: tuple[str, ...]
    convolutions: bool
    training: DistillOptions
    out: Path
    force: bool
    method: PruneMethod = "magnitude"
    prune_images: int = 128
    permute: bool = False
    state_dict: str | None = None
    recipe: Path | None = None
    stage: CompressStage = "prune"
    qat_epochs: int | None = None
    teacher: Path | None = None
    resume: bool = False
    every: Every = field(default_factory=Every)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressReporter:
    """Where remarks and progress go."""

    say: Callable[[str], None]
    epoch: Callable[[EpochResult], None]
    step: Callable[[StepResult], None]


def _untold(_news: object) -> None:
    """Nobody listens."""


def trains(request: CompressRequest) -> bool:
    """Whether anything is trained."""
    return bool(request.training.epochs or request.qat_epochs is not None)


SILENT = CompressReporter(say=_untold, epoch=_untold, step=_untold)
