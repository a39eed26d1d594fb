"""Every measure against another library's, of random predictions; resampled images against images that are copied."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from gpusq_deploy.benchmarks.accuracy.classification import ClassJudge
from gpusq_deploy.benchmarks.accuracy.detection import BoxJudge, BoxRecord
from gpusq_deploy.benchmarks.accuracy.retrieval import VectorJudge, embedding
from gpusq_deploy.benchmarks.accuracy.segmentation import MapJudge
from gpusq_deploy.benchmarks.accuracy.tasks_and_data import Detection
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import array_from_tensor

metrics: Any = pytest.importorskip("sklearn.metrics")
neighbors: Any = pytest.importorskip("sklearn.neighbors")


class Answers(torch.nn.Module):
    """Returns what it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.here = torch.nn.Parameter(torch.zeros(0))
        self.answer = answer

    def forward(self, _images: torch.Tensor) -> Any:
        return self.answer


def repeated(records: Sequence[Any], seed: int) -> tuple[list[Any], npt.NDArray[np.float64]]:
    """Records drawn with replacement, copies side by side in the order of the images; and how often each was."""
    drawn = np.random.default_rng(seed).integers(len(records), size=len(records))
    weights = np.bincount(drawn, minlength=len(records)).astype(np.float64)
    return [each for each, weight in zip(records, weights, strict=True) for _ in range(int(weight))], weights


def test_top_1_and_top_5_are_sklearns() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((200, 12)).astype(np.float32))
    targets = [int(label) for label in rng.integers(12, size=200)]
    records = ClassJudge().records(Answers(logits), torch.zeros(200, 3, 2, 2), targets)
    found = ClassJudge().judged(records)
    wanted = [metrics.top_k_accuracy_score(targets, logits.numpy(), k=k, labels=range(12)) for k in (1, 5)]
    assert found.values == pytest.approx(wanted)
    assert found.answers == logits.argmax(dim=1).tolist()
    copied, weights = repeated(records, 1)
    assert found.statistic(weights).tolist() == pytest.approx(ClassJudge().judged(copied).values)


def test_equal_logits_are_the_lower_class() -> None:
    (record,) = ClassJudge().records(Answers(torch.zeros(1, 7)), torch.zeros(1, 3, 2, 2), [0])
    assert record.classes == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(GpusqError, match="1 of 4 values of the model's answer aren't finite"):
        ClassJudge().records(Answers(torch.tensor([[0.0, bad, 1.0, 2.0]])), torch.zeros(1, 3, 2, 2), [0])


def test_miou_is_sklearns_jaccard_score() -> None:
    rng, classes = np.random.default_rng(0), 6
    logits = torch.from_numpy(rng.standard_normal((9, classes, 8, 8)).astype(np.float32))
    logits[:, 5] -= 100  # never predicted
    targets = torch.from_numpy(rng.integers(4, size=(9, 8, 8)))  # 4 is predicted but no label, 5 is neither
    targets[torch.from_numpy(rng.random((9, 8, 8)) < 0.2)] = 255
    judge = MapJudge(classes)
    records = judge.records(Answers(logits), torch.zeros(9, 3, 8, 8), list(targets))
    found = judge.judged(records)
    counts = targets != 255
    wanted, predicted = array_from_tensor(targets[counts]), array_from_tensor(logits.argmax(dim=1)[counts])
    assert found.values[0] == pytest.approx(metrics.jaccard_score(wanted, predicted, labels=range(5), average="macro"))
    assert found.values[1] == pytest.approx((wanted == predicted).mean())
    copied, weights = repeated(records, 1)
    assert found.statistic(weights).tolist() == pytest.approx(judge.judged(copied).values)


def test_a_map_changes_from_a_hundredth_of_its_pixels_on() -> None:
    judge, logits = MapJudge(2), torch.zeros(1, 2, 20, 20)
    target = torch.zeros(20, 20, dtype=torch.int64)

    def answer(pixels: int) -> Any:
        changed = logits.clone()
        changed[0, 1].view(-1)[:pixels] = 1
        (found,) = judge.judged(judge.records(Answers(changed), torch.zeros(1, 3, 20, 20), [target])).answers
        return found

    assert not judge.changed(answer(0), answer(3))
    assert judge.changed(answer(0), answer(4))
    assert judge.text(answer(100), ("sky", "sea")) == "sky 75%, sea 25%"


def features(images: int, classes: int, seed: int) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    centres = rng.standard_normal((classes, 16))
    return torch.from_numpy((centres[labels] + 1.5 * rng.standard_normal((images, 16))).astype(np.float32)), labels


# 300 images are more than the queries whose similarities are held at once.
@pytest.mark.parametrize("images", [12, 300])
def test_knn_and_retrieval_are_sklearns(images: int) -> None:
    vectors, labels = features(images, 5, 0)
    judge = VectorJudge()
    records = judge.records(Answers(vectors), torch.zeros(images, 3, 2, 2), labels.tolist())
    found = judge.judged(records)
    votes, precisions, nearest = list[int](), list[float](), list[bool]()
    for index in range(images):
        others = np.delete(np.arange(images), index)
        neighbours: Any = neighbors.KNeighborsClassifier(min(20, images - 1), metric="cosine")
        neighbours.fit(vectors[others].numpy(), labels[others])
        votes.append(int(neighbours.predict(vectors[index : index + 1].numpy())[0]))
        cosines = torch.nn.functional.cosine_similarity(vectors[others], vectors[index : index + 1])
        similar = array_from_tensor(cosines)
        hits = labels[others] == labels[index]
        if hits.any():
            precisions.append(metrics.average_precision_score(hits, similar))
            nearest.append(bool(hits[int(cosines.argmax())]))
    assert list(found.answers) == votes
    assert found.values[0] == pytest.approx(sum(map(int.__eq__, votes, labels.tolist())) / images)
    assert found.values[1:] == pytest.approx([float(np.mean(precisions)), float(np.mean(nearest))])


def test_a_class_of_one_image_has_nothing_to_retrieve() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    judge = VectorJudge()
    found = judge.judged(judge.records(Answers(vectors), torch.zeros(3, 3, 2, 2), [0, 0, 1]))
    assert found.values[1:] == (1.0, 1.0)
    with pytest.raises(GpusqError, match="1 image has no neighbour"):
        judge.judged(judge.records(Answers(vectors[:1]), torch.zeros(1, 3, 2, 2), [0]))


def test_the_embedding_of_an_answer() -> None:
    tokens, pooled, maps = torch.rand(2, 5, 4), torch.rand(2, 4), torch.rand(2, 4, 3, 3)
    assert torch.equal(embedding((tokens, pooled)), pooled)
    assert torch.equal(embedding([tokens]), tokens[:, 0])
    assert torch.equal(embedding(maps), maps.mean(dim=(2, 3)))
    with pytest.raises(GpusqError, match="the model answers no features"):
        embedding(torch.zeros(2, 4, dtype=torch.int64))


def boxes(images: int, seed: int, *, decimals: int = 1) -> list[BoxRecord]:
    """Labelled boxes, crowds among them, and found ones, moved or anywhere; to one decimal many scores are one."""
    rng, records = np.random.default_rng(seed), list[BoxRecord]()
    for _ in range(images):
        count = int(rng.integers(5))
        wanted = np.concatenate([rng.uniform(0.3, 0.7, (count, 2)), rng.uniform(0.1, 0.4, (count, 2))], axis=1)
        labels = rng.integers(3, size=count)
        moved = wanted + rng.normal(0, 0.02, wanted.shape)
        anywhere = rng.uniform(0.2, 0.5, (3, 4))
        found = np.concatenate([moved, moved[:1], anywhere])
        classes = np.concatenate([labels, labels[:1], rng.integers(4, size=3)])
        records.append(
            BoxRecord(
                scores=tuple(np.round(rng.random(len(found)), decimals).tolist()),
                classes=tuple(classes.tolist()),
                boxes=tuple(map(tuple, found.tolist())),
                wanted=tuple(labels.tolist()),
                wanted_boxes=tuple(map(tuple, wanted.tolist())),
                crowd=tuple((rng.random(count) < 0.2).tolist()),
            )
        )
    return records


def by_files(records: Sequence[BoxRecord], folder: Path, *, width: float, height: float) -> list[float]:
    """mAP, and that at IoU 0.5, by pycocotools from two files in pixels of images of such a size."""
    library: Any = pytest.importorskip("pycocotools.coco")
    evaluation: Any = pytest.importorskip("pycocotools.cocoeval")

    def placed(box: Sequence[float]) -> list[float]:
        x, y, wide, high = box
        return [(x - wide / 2) * width, (y - high / 2) * height, wide * width, high * height]

    truth, found = list[dict[str, Any]](), list[dict[str, Any]]()
    for image, each in enumerate(records, start=1):
        for label, box, crowd in zip(each.wanted, each.wanted_boxes, each.crowd, strict=True):
            corner = placed(box)
            common = {"id": len(truth) + 1, "image_id": image, "category_id": label + 1}
            truth.append({**common, "bbox": corner, "area": corner[2] * corner[3], "iscrowd": int(crowd)})
        for label, score, box in zip(each.classes, each.scores, each.boxes, strict=True):
            found.append({"image_id": image, "category_id": label + 1, "bbox": placed(box), "score": score})
    images = [{"id": image, "width": width, "height": height} for image in range(1, len(records) + 1)]
    categories = [{"id": label + 1, "name": str(label)} for label in range(3)]
    (folder / "truth.json").write_text(
        json.dumps({"info": {}, "images": images, "annotations": truth, "categories": categories}), "utf-8"
    )
    (folder / "found.json").write_text(json.dumps(found), "utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        truth_file: Any = library.COCO(str(folder / "truth.json"))
        judge: Any = evaluation.COCOeval(truth_file, truth_file.loadRes(str(folder / "found.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [float(value) for value in judge.stats[:2]]


def test_map_is_pycocotools_from_files(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    records = boxes(30, 0)
    found = BoxJudge(Detection(no_object=True)).judged(records)
    wanted = by_files(records, tmp_path, width=640.0, height=480.0)
    assert 0.05 < wanted[0] < 0.9
    assert found.values == pytest.approx(wanted, abs=1e-6)
    assert found.statistic(np.ones(30)).tolist() == pytest.approx(wanted, abs=1e-6)


# Of equal scores in an image that is drawn twice pycocotools takes the copies one after the other, we both at once.
@pytest.mark.parametrize(("decimals", "near"), [(9, 1e-6), (1, 1e-3)])
@pytest.mark.parametrize("seed", range(4))
def test_map_of_resampled_images_is_that_of_copied_images(
    seed: int, decimals: int, near: float, tmp_path: Path
) -> None:
    pytest.importorskip("pycocotools")
    records = boxes(30, 0, decimals=decimals)
    found = BoxJudge(Detection(no_object=True)).judged(records)
    copied, weights = repeated(records, seed)
    wanted = by_files(copied, tmp_path, width=640.0, height=480.0)
    assert abs(wanted[0] - found.values[0]) > 2 * near
    assert found.statistic(weights).tolist() == pytest.approx(wanted, abs=near)


def test_no_boxes_at_all_are_worth_nothing() -> None:
    empty = BoxRecord(scores=(), classes=(), boxes=(), wanted=(), wanted_boxes=(), crowd=())
    found = BoxJudge(Detection(no_object=True)).judged([empty, empty])
    assert found.values == (0.0, 0.0)
    assert found.statistic(np.ones(2)).tolist() == [0.0, 0.0]


def test_many_boxes_are_drawn_less_often() -> None:
    found = BoxJudge(Detection(no_object=True)).judged(boxes(30, 0))
    assert found.draws is not None and found.draws > 2000  # noqa: PT018 - one claim
