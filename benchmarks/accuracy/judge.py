"""What evaluation asks of a task: a record of each image that says all, and what records of all images tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gpusq_deploy.artifacts import Value
from gpusq_deploy.benchmarks.accuracy.bootstrap import Statistic
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Measure
from gpusq_deploy.benchmarks.accuracy.values import TaskName


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What one model's records tell.

    Attributes:
        values: Each measure, 0…1.
        statistic: The same of resampled images.
        draws: So many of these at most, where each takes long.
        answers: Of each image in short, to compare and to show.
        labels: Of each image, to show.
    """

    values: tuple[float, ...]
    statistic: Statistic
    answers: Sequence[Any]
    labels: Sequence[Any]
    draws: int | None = None


class Judge(Protocol):
    """One task, measured."""

    @property
    def task(self) -> TaskName:
        """Its name."""
        ...

    @property
    def measure(self) -> Measure:
        """What the data must have labels for."""
        ...

    @property
    def measures(self) -> tuple[str, ...]:
        """What is measured, the main one first."""
        ...

    @property
    def record(self) -> type[Value]:
        """The type of the records."""
        ...

    def records(self, module: torch.nn.Module, images: torch.Tensor, targets: Sequence[Any]) -> list[Any]:
        """Run a batch [N, channels, height, width]: the prediction and the label of each image.

        Raises:
            GpusqError: The model's answer isn't one of this task, or isn't finite.
        """
        ...

    def judged(self, records: Sequence[Any]) -> Judged:
        """Measure."""
        ...

    def changed(self, first: Any, other: Any) -> bool:
        """Whether two answers to one image differ so that a person would say so."""
        ...

    def text(self, answer: Any, names: Sequence[str]) -> str:
        """An answer or a label in words; `names` are the classes' or empty."""
        ...
