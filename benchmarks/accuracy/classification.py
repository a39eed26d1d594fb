"""One class for each image: top-1 and top-5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from gpusq_deploy.artifacts import Value
from gpusq_deploy.benchmarks.accuracy.answers import class_name, require_finite
from gpusq_deploy.benchmarks.accuracy.bootstrap import weighted_mean
from gpusq_deploy.benchmarks.accuracy.judge import Judged
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Classification, Measure
from gpusq_deploy.benchmarks.accuracy.values import TaskName

_TOP = 5


class ClassRecord(Value):
    """The likeliest classes in order, at most five; and the image's own."""

    classes: tuple[int, ...]
    target: int


@dataclass(frozen=True, slots=True)
class ClassJudge:
    """Of equal logits the lower class comes first, as argmax has it."""

    @property
    def task(self) -> TaskName:
        """See `Judge`."""
        return "classification"

    @property
    def measure(self) -> Measure:
        """See `Judge`."""
        return "accuracy"

    @property
    def measures(self) -> tuple[str, ...]:
        """See `Judge`."""
        return ("top-1", "top-5")

    @property
    def record(self) -> type[Value]:
        """See `Judge`."""
        return ClassRecord

    def records(self, module: torch.nn.Module, images: torch.Tensor, targets: Sequence[Any]) -> list[ClassRecord]:
        """See `Judge`."""
        logits = require_finite(Classification().answer(module, images))
        order = torch.sort(logits.cpu(), dim=1, descending=True, stable=True).indices[:, :_TOP]
        rows = cast("list[list[int]]", order.tolist())
        return [ClassRecord(classes=tuple(row), target=int(target)) for row, target in zip(rows, targets, strict=True)]

    def judged(self, records: Sequence[ClassRecord]) -> Judged:
        """See `Judge`."""
        right = np.array([[each.target == each.classes[0], each.target in each.classes] for each in records], float)
        return Judged(
            values=tuple(float(share) for share in right.mean(axis=0)),
            statistic=weighted_mean(right),
            answers=[each.classes[0] for each in records],
            labels=[each.target for each in records],
        )

    def changed(self, first: Any, other: Any) -> bool:
        """Whether the likeliest class is another."""
        return bool(first != other)

    def text(self, answer: Any, names: Sequence[str]) -> str:
        """The class."""
        return class_name(int(answer), names)
