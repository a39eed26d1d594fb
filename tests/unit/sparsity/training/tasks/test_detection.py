"""A DETR's losses against transformers' own, and mAP against what it is by hand."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.transformers_models import module_from_transformers
from gpusq_deploy.sparsity.training.tasks.choose import task_of
from gpusq_deploy.sparsity.training.tasks.detection import Boxes, Detection

pytest.importorskip("pycocotools")
LABELS = 3
SMALL: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 5,
    "num_labels": LABELS,
    "input_size": [32, 32],
}


@functools.cache
def detr() -> Any:
    torch.manual_seed(0)
    spec = ArchSpec(source="transformers", name="DetrForObjectDetection", arguments=SMALL)
    return module_from_transformers(spec).eval()


def boxes(*entries: tuple[float, ...], labels: tuple[int, ...] | None = None) -> dict[str, torch.Tensor]:
    count = len(entries)
    return {
        "class_labels": torch.tensor(labels or [0] * count),
        "boxes": torch.tensor(entries, dtype=torch.float32).reshape(-1, 4),
        "crowd": torch.zeros(count, dtype=torch.bool),
    }


TARGETS = [boxes((0.5, 0.5, 0.2, 0.4), labels=(1,)), boxes((0.2, 0.3, 0.1, 0.1), (0.7, 0.6, 0.3, 0.2), labels=(0, 2))]


def test_the_task_is_found_by_the_answer() -> None:
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        answer = detr()(images)
    assert task_of(detr(), answer, maps=False) == Detection(no_object=True)
    bare = (answer[0][..., :LABELS], answer[1])
    assert task_of(detr(), bare, maps=False) == Detection(no_object=False)
    assert task_of(detr(), answer[0][:, 0], maps=False).measure == "accuracy"


def test_the_hard_loss_is_the_library_s_own() -> None:
    module, images = detr(), torch.randn(2, 3, 32, 32)
    task = Detection(no_object=True)
    answer = task.answer(module, images)
    labels = [{"class_labels": each["class_labels"], "boxes": each["boxes"]} for each in TARGETS]
    parent: Any = type(module).__mro__[1]
    whole = parent.forward(module, pixel_values=images, labels=labels)
    found = task.losses(module, answer, answer, TARGETS)
    torch.testing.assert_close(found.hard, whole.loss)
    assert float(found.soft.detach()) == pytest.approx(0, abs=1e-5)
    crowd = {**TARGETS[1], "crowd": torch.tensor([False, True])}
    fewer = {name: value[:1] for name, value in TARGETS[1].items()}
    torch.testing.assert_close(
        task.losses(module, answer, answer, [TARGETS[0], crowd]).hard,
        task.losses(module, answer, answer, [TARGETS[0], fewer]).hard,
    )
    with pytest.raises(GpusqError, match="no matching loss of its own"):
        task.losses(torch.nn.Identity(), answer, answer, TARGETS)


def found(target: Mapping[str, torch.Tensor], *scores: float) -> dict[str, torch.Tensor]:
    return {"class_labels": target["class_labels"], "boxes": target["boxes"], "scores": torch.tensor(scores)}


def test_map_is_coco_s() -> None:
    task = Detection(no_object=True)
    perfect = [found(TARGETS[0], 0.9), found(TARGETS[1], 0.8, 0.7)]
    assert task.quality(perfect, TARGETS) == pytest.approx(1)
    empty = {name: value[:0] for name, value in perfect[0].items()}
    assert task.quality([empty, perfect[1]], TARGETS) == pytest.approx(2 / 3)  # two of three classes
    assert task.quality([empty, empty], TARGETS) == 0
    # A box that is moved by a tenth of its width has IoU 0.9 / 1.1 = 0.818: right at 7 of 10 thresholds, 0.5 … 0.8.
    one = boxes((0.5, 0.5, 0.2, 0.4))
    moved = {**found(one, 0.9), "boxes": torch.tensor([[0.52, 0.5, 0.2, 0.4]])}
    assert task.quality([moved], [one]) == pytest.approx(0.7)
    # A likelier wrong box halves the precision.
    both = {
        "class_labels": torch.tensor([0, 0]),
        "boxes": torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.2, 0.4]]),
        "scores": torch.tensor([0.95, 0.9]),
    }
    assert task.quality([both], [one]) == pytest.approx(0.5)


def test_predictions_are_the_likeliest_classes_and_a_teacher_s_the_likely_ones() -> None:
    logits = torch.tensor([[[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 9.0]]])
    answer = Boxes(logits, torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]]))
    task = Detection(no_object=True)
    (prediction,) = task.predictions(answer)
    assert prediction["class_labels"][0] == 0
    torch.testing.assert_close(prediction["scores"][0], logits[0, 0].softmax(0)[0])
    (target,) = task.as_targets([prediction])
    assert target["class_labels"].tolist() == [0]
    torch.testing.assert_close(target["boxes"], answer.boxes[0, :1])
    (bare,) = Detection(no_object=False).predictions(answer)
    assert bare["class_labels"][:2].tolist() in ([0, 3], [3, 0])
