"""Models of features: kNN accuracy, and how well an image finds those of its class. Every image is a query in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from gpusq_deploy.artifacts import Value
from gpusq_deploy.benchmarks.accuracy.answers import class_name, require_finite
from gpusq_deploy.benchmarks.accuracy.bootstrap import Array, weighted_mean
from gpusq_deploy.benchmarks.accuracy.judge import Judged
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Measure
from gpusq_deploy.benchmarks.accuracy.values import TaskName
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import array_from_tensor

_NEIGHBOURS = 20
_ROWS = 256  # queries whose similarities are held at once


class VectorRecord(Value):
    """An embedding, float32 little-endian, and the image's class."""

    vector: bytes
    target: int


@dataclass(frozen=True, slots=True)
class VectorJudge:
    """Cosine similarity, leave-one-out: an image is compared with all others.

    kNN: the class of most of the 20 nearest, of equally many the lowest; as scikit-learn's KNeighborsClassifier with
    uniform weights. mAP: mean over the queries of the average precision of the whole ranking. Recall@1: whether the
    nearest is of the query's class. A query whose class has no other image counts in the first alone.
    """

    @property
    def task(self) -> TaskName:
        """See `Judge`."""
        return "retrieval"

    @property
    def measure(self) -> Measure:
        """See `Judge`."""
        return "accuracy"

    @property
    def measures(self) -> tuple[str, ...]:
        """See `Judge`."""
        return ("kNN accuracy", "retrieval mAP", "recall@1")

    @property
    def record(self) -> type[Value]:
        """See `Judge`."""
        return VectorRecord

    def records(self, module: torch.nn.Module, images: torch.Tensor, targets: Sequence[Any]) -> list[VectorRecord]:
        """See `Judge`."""
        answer: Any = module(images.to(next(module.parameters()).device))
        vectors = array_from_tensor(require_finite(embedding(answer)).cpu())
        return [
            VectorRecord(vector=vector.astype("<f4").tobytes(), target=int(target))
            for vector, target in zip(vectors, targets, strict=True)
        ]

    def judged(self, records: Sequence[VectorRecord]) -> Judged:
        """See `Judge`.

        Raises:
            GpusqError: One image has no neighbour.
        """
        if len(records) < 2:
            raise GpusqError(f"{len(records)} image has no neighbour: retrieval needs two or more", place="--data")
        vectors = np.stack([np.frombuffer(each.vector, "<f4") for each in records]).astype(np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        labels = np.array([each.target for each in records])
        classes, values = _neighbours(vectors, labels)
        return Judged(
            values=tuple(float(value) for value in weighted_mean(values)(np.ones(len(records)))),
            statistic=weighted_mean(values),
            answers=classes,
            labels=[each.target for each in records],
        )

    def changed(self, first: Any, other: Any) -> bool:
        """Whether the neighbours vote for another class."""
        return bool(first != other)

    def text(self, answer: Any, names: Sequence[str]) -> str:
        """The class."""
        return class_name(int(answer), names)


def embedding(answer: Any) -> torch.Tensor:
    """One vector [N, features] of each image.

    Of several answers the first of two axes, such as transformers' pooler_output; else of the first [N, tokens,
    features] the first token, which is the class token where there is one, or of [N, features, h, w] the mean.

    Raises:
        GpusqError: None is of such a shape.
    """
    found = [each for each in _tensors(answer) if each.is_floating_point()]
    of_axes = {each.ndim: each for each in reversed(found)}
    if 2 in of_axes:
        return of_axes[2].float()
    if 3 in of_axes:
        return of_axes[3][:, 0].float()
    if 4 in of_axes:
        return of_axes[4].float().mean(dim=(2, 3))
    raise GpusqError(
        f"the model answers no features: {', '.join(str(list(each.shape)) for each in found) or 'no tensor of floats'}",
        place="the model's output",
        hint="retrieval takes [N, features], [N, tokens, features] or [N, features, h, w]",
    )


def _tensors(answer: Any) -> list[torch.Tensor]:
    if isinstance(answer, torch.Tensor):
        return [answer]
    several = cast("Sequence[Any]", answer) if isinstance(answer, (tuple, list)) else ()
    return [tensor for each in several for tensor in _tensors(each)]


def _neighbours(vectors: Array, labels: npt.NDArray[np.int64]) -> tuple[list[int], Array]:
    """The class that the neighbours vote for, and the three measures of each query [images, 3]."""
    count, highest = len(labels), int(labels.max()) + 1
    classes, values = list[int](), np.full((count, 3), np.nan)
    for start in range(0, count, _ROWS):
        similar = vectors[start : start + _ROWS] @ vectors.T
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -np.inf
        ranking = np.argsort(-similar, axis=1, kind="stable")[:, :-1]
        for row, order in enumerate(ranking):
            query, found = start + row, labels[order]
            vote = int(np.bincount(found[:_NEIGHBOURS], minlength=highest).argmax())
            classes.append(vote)
            values[query, 0] = vote == labels[query]
            hits = found == labels[query]
            if hits.any():
                ranks = np.flatnonzero(hits) + 1
                values[query, 1] = (np.arange(1, len(ranks) + 1) / ranks).mean()
                values[query, 2] = hits[0]
    return classes, values
