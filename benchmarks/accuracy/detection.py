"""Boxes and their classes: COCO's mAP, by pycocotools."""

from __future__ import annotations

from collections import Counter
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
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Detection, Measure, coco_evaluation
from gpusq_deploy.benchmarks.accuracy.values import TaskName
from gpusq_deploy.text import counted

_LIKELY = 0.5
# A draw sorts nothing, but sums up every box: so many boxes in all draws, and no fewer draws than that.
_MOST_BOXES, _LEAST_DRAWS = 50_000_000, 200


class BoxRecord(Value):
    """Found boxes with their scores and classes, and the labelled ones: centre x and y, width and height, 0…1."""

    scores: tuple[float, ...]
    classes: tuple[int, ...]
    boxes: tuple[tuple[float, ...], ...]
    wanted: tuple[int, ...]
    wanted_boxes: tuple[tuple[float, ...], ...]
    crowd: tuple[bool, ...]


class _Category(NamedTuple):
    """Boxes of one class by falling score.

    Image of each [D]; right and wrong at each IoU [T, D], neither where it is ignored; and labelled boxes of each
    image [N].
    """

    image: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    wrong: npt.NDArray[np.bool_]
    labelled: Array


@dataclass(frozen=True, slots=True)
class BoxJudge:
    """`detection` is the task of training."""

    detection: Detection

    @property
    def task(self) -> TaskName:
        """See `Judge`."""
        return "detection"

    @property
    def measure(self) -> Measure:
        """See `Judge`."""
        return "mAP"

    @property
    def measures(self) -> tuple[str, ...]:
        """See `Judge`."""
        return ("mAP", "mAP at IoU 0.5")

    @property
    def record(self) -> type[Value]:
        """See `Judge`."""
        return BoxRecord

    def records(self, module: torch.nn.Module, images: torch.Tensor, targets: Sequence[Any]) -> list[BoxRecord]:
        """See `Judge`."""
        answer = self.detection.answer(module, images)
        require_finite(answer.logits)
        require_finite(answer.boxes)
        return [_record(*pair) for pair in zip(self.detection.predictions(answer), targets, strict=True)]

    def judged(self, records: Sequence[BoxRecord]) -> Judged:
        """See `Judge`."""
        evaluation = coco_evaluation([_found(each) for each in records], [_wanted(each) for each in records])
        stats = [0.0, 0.0] if evaluation is None else [max(0.0, float(value)) for value in evaluation.stats[:2]]
        boxes = sum(len(each.scores) for each in records)
        return Judged(
            values=tuple(stats),
            statistic=_precision([] if evaluation is None else _categories(evaluation, len(records)), evaluation),
            answers=[_likely(each) for each in records],
            labels=[Counter(each.wanted) for each in records],
            draws=max(_LEAST_DRAWS, _MOST_BOXES // max(1, boxes)),
        )

    def changed(self, first: Any, other: Any) -> bool:
        """Whether the boxes likelier than 0.5 are of other classes, or more or fewer."""
        return bool(first != other)

    def text(self, answer: Any, names: Sequence[str]) -> str:
        """How many boxes of each class."""
        counts: Counter[int] = answer
        return ", ".join(counted(count, class_name(label, names)) for label, count in sorted(counts.items())) or "none"


def _record(found: Any, target: Any) -> BoxRecord:
    return BoxRecord(
        scores=tuple(found["scores"].tolist()),
        classes=tuple(found["class_labels"].tolist()),
        boxes=tuple(map(tuple, found["boxes"].tolist())),
        wanted=tuple(target["class_labels"].tolist()),
        wanted_boxes=tuple(map(tuple, target["boxes"].tolist())),
        crowd=tuple(target["crowd"].tolist()),
    )


def _found(record: BoxRecord) -> dict[str, torch.Tensor]:
    return {
        "scores": torch.tensor(record.scores, dtype=torch.float32),
        "class_labels": torch.tensor(record.classes, dtype=torch.int64),
        "boxes": torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4),
    }


def _wanted(record: BoxRecord) -> dict[str, torch.Tensor]:
    return {
        "class_labels": torch.tensor(record.wanted, dtype=torch.int64),
        "boxes": torch.tensor(record.wanted_boxes, dtype=torch.float32).reshape(-1, 4),
        "crowd": torch.tensor(record.crowd, dtype=torch.bool),
    }


def _likely(record: BoxRecord) -> Counter[int]:
    pairs = zip(record.classes, record.scores, strict=True)
    return Counter(label for label, score in pairs if score > _LIKELY)


def _categories(evaluation: Any, images: int) -> list[_Category]:
    """Matches of every class as pycocotools found them, for all sizes of boxes."""
    params = evaluation.params
    areas = len(params.areaRng)
    found: list[_Category] = []
    for number in range(len(params.catIds)):
        start = number * areas * images  # the first of the areas is all sizes
        seen = [(index, each) for index, each in enumerate(evaluation.evalImgs[start : start + images]) if each]
        labelled = np.zeros(images)
        for index, each in seen:
            labelled[index] = np.count_nonzero(np.asarray(each["gtIgnore"]) == 0)
        if labelled.any():
            found.append(_category(seen, labelled, params.maxDets[-1]))
    return found


def _category(seen: Sequence[tuple[int, Any]], labelled: Array, most: int) -> _Category:
    scores = np.concatenate([each["dtScores"][:most] for _, each in seen])
    # As pycocotools sorts: equal scores stay in the order of the images.
    order = np.argsort(-scores, kind="mergesort")
    images = np.concatenate([np.full(len(each["dtScores"][:most]), index) for index, each in seen])
    matched = np.concatenate([each["dtMatches"][:, :most] for _, each in seen], axis=1)[:, order] != 0
    ignored = np.concatenate([each["dtIgnore"][:, :most] for _, each in seen], axis=1)[:, order].astype(bool)
    return _Category(images[order].astype(np.int64), matched & ~ignored, ~matched & ~ignored, labelled)


def _precision(categories: Sequence[_Category], evaluation: Any) -> Statistic:
    """MAP over IoU 0.5 to 0.95, and at 0.5, of resampled images.

    An image that is drawn twice has its boxes twice, one behind the other: at a step of recall the interpolated
    precision is the same as with all copies at once. So nothing is matched or sorted again. Where boxes of one image
    have equal scores the copies would lie in another order, which changes mAP by less than 0.001 in the tests.
    """

    def statistic(weights: Array) -> Array:
        each = [found for category in categories if (found := _of_category(category, weights, evaluation)) is not None]
        if not each:
            return np.zeros(2)
        means = np.mean(each, axis=0)
        return np.array([means.mean(), means[0]])

    return statistic


def _of_category(category: _Category, weights: Array, evaluation: Any) -> Array | None:
    """Mean of the interpolated precision at 101 recalls, for each IoU; None where no labelled box was drawn."""
    total = float(weights @ category.labelled)
    if not total:
        return None
    drawn = weights[category.image]
    right = np.cumsum(category.right * drawn, axis=1)
    wrong = np.cumsum(category.wrong * drawn, axis=1)
    steps: Array = evaluation.params.recThrs
    means = np.zeros(len(right))
    precision = right / (right + wrong + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for row, (hits, best) in enumerate(zip(right, envelope, strict=True)):
        places = np.searchsorted(hits / total, steps, side="left")
        means[row] = best[places[places < len(best)]].sum() / len(steps)
    return means
