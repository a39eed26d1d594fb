"""One class for each pixel: mean IoU and pixel accuracy, of the image as the model sees it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gpusq_deploy.artifacts import Value
from gpusq_deploy.benchmarks.accuracy.answers import class_name, require_finite
from gpusq_deploy.benchmarks.accuracy.bootstrap import Array, Statistic
from gpusq_deploy.benchmarks.accuracy.judge import Judged
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import IGNORED, Measure, Segmentation
from gpusq_deploy.benchmarks.accuracy.values import TaskName
from gpusq_deploy.frontend import array_from_tensor

# An image counts as changed from this share of its pixels on.
_CHANGED = 0.01


class MapRecord(Value):
    """Of one image: pixels of each class by the label that count, by the prediction, and by both; and the prediction.

    `map` is int16 [height, width], little-endian, compressed by zlib.
    """

    wanted: tuple[int, ...]
    predicted: tuple[int, ...]
    both: tuple[int, ...]
    shape: tuple[int, int]
    map: bytes


class _Answer(NamedTuple):
    """A label map as a record holds it; a label has none."""

    record: MapRecord
    target: bool = False


@dataclass(frozen=True, slots=True)
class MapJudge:
    """`classes`: so many the model has."""

    classes: int

    @property
    def task(self) -> TaskName:
        """See `Judge`."""
        return "segmentation"

    @property
    def measure(self) -> Measure:
        """See `Judge`."""
        return "mIoU"

    @property
    def measures(self) -> tuple[str, ...]:
        """See `Judge`."""
        return ("mIoU", "pixel accuracy")

    @property
    def record(self) -> type[Value]:
        """See `Judge`."""
        return MapRecord

    def records(self, module: torch.nn.Module, images: torch.Tensor, targets: Sequence[Any]) -> list[MapRecord]:
        """See `Judge`."""
        task = Segmentation()
        maps = task.predictions(require_finite(task.answer(module, images)))
        pairs = zip(maps, targets, strict=True)
        return [self._record(array_from_tensor(found).astype("<i2"), target.numpy()) for found, target in pairs]

    def judged(self, records: Sequence[MapRecord]) -> Judged:
        """See `Judge`."""
        counts = np.array([(each.wanted, each.predicted, each.both) for each in records], np.float64)
        statistic = _overlap(counts)
        values = statistic(np.ones(len(records)))
        return Judged(
            values=tuple(float(value) for value in values),
            statistic=statistic,
            answers=[_Answer(each) for each in records],
            labels=[_Answer(each, target=True) for each in records],
        )

    def changed(self, first: Any, other: Any) -> bool:
        """Whether a hundredth of the pixels is of another class; maps of different sizes aren't compared."""
        if first.record.shape != other.record.shape:
            return False
        return bool((_pixels(first.record) != _pixels(other.record)).mean() >= _CHANGED)

    def text(self, answer: Any, names: Sequence[str]) -> str:
        """The three largest classes and their shares."""
        counts = np.array(answer.record.wanted if answer.target else answer.record.predicted)
        largest = [int(label) for label in np.argsort(-counts, kind="stable")[:3] if counts[label]]
        whole = max(1, int(counts.sum()))
        return ", ".join(f"{class_name(label, names)} {counts[label] / whole:.0%}" for label in largest)

    def _record(self, found: npt.NDArray[np.int16], target: npt.NDArray[np.int64]) -> MapRecord:
        counted = target != IGNORED
        predicted, wanted = found[counted].astype(np.int64), target[counted]
        return MapRecord(
            wanted=self._counts(wanted),
            predicted=self._counts(predicted),
            both=self._counts(wanted[wanted == predicted]),
            shape=(found.shape[0], found.shape[1]),
            map=zlib.compress(found.tobytes()),
        )

    def _counts(self, labels: npt.NDArray[np.int64]) -> tuple[int, ...]:
        return tuple(int(count) for count in np.bincount(labels, minlength=self.classes))


def _overlap(counts: Array) -> Statistic:
    """Mean IoU over the classes that occur, and the share of right pixels, of counts [images, 3, classes]."""

    def statistic(weights: Array) -> Array:
        wanted, predicted, both = np.tensordot(weights, counts, axes=1)
        either = wanted + predicted - both
        occurs = either > 0
        iou = float((both[occurs] / either[occurs]).mean()) if occurs.any() else 0.0
        return np.array([iou, both.sum() / max(1.0, wanted.sum())])

    return statistic


def _pixels(record: MapRecord) -> npt.NDArray[np.int16]:
    return np.frombuffer(zlib.decompress(record.map), "<i2")
