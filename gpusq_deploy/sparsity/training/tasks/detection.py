"""Boxes and their classes, from a model of queries: DETR and its kin, as the transformers library has them."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch.nn import functional

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import library
from gpusq_deploy.sparsity.training.losses import soft_loss
from gpusq_deploy.sparsity.training.tasks.task import Measure, TaskLosses

# Of a teacher's boxes those count as labels that are likelier than not.
_LIKELY = 0.5
_MOST_BOXES = 100  # of an image, as COCO's measure counts
_BOX_WEIGHT = 5.0  # of the L1 distance of boxes, as in DETR's own loss
_PIXELS = 1000.0  # per side: COCO's measure takes sizes in pixels


class Boxes(NamedTuple):
    """An answer: logits [N, queries, classes], with a last class of no object or without, and boxes [N, queries, 4].

    `masks`: logits [N, queries, h, w] of their pixels, of a model that answers them.
    """

    logits: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Detection:
    """Boxes are centre x and y, width and height, 0…1.

    A target is `class_labels` int64 [M], `boxes` float32 [M, 4], and `crowd` [M], true where a box is of many.
    `no_object`: whether the last class is none, so that classes exclude one another, as DETR's do.
    """

    no_object: bool
    temperature: float = 2.0

    @property
    def measure(self) -> Measure:
        """COCO's mAP, the mean over IoU 0.5 to 0.95."""
        return "mAP"

    def answer(self, module: torch.nn.Module, images: torch.Tensor) -> Boxes:
        """See `Boxes` and `Task`."""
        found = module(images.to(next(module.parameters()).device))
        if not is_of_boxes(found):
            raise GpusqError("the model returns no logits and boxes", place="the model's output")
        return Boxes(found[0], found[1], _masks(found))

    def losses(
        self, module: torch.nn.Module, student: Boxes, teacher: Boxes, targets: Sequence[Mapping[str, torch.Tensor]]
    ) -> TaskLosses:
        """The model's own matching loss; for each query KL divergence of classes and L1 distance of boxes."""
        ours, theirs = student.logits.flatten(0, 1), teacher.logits.flatten(0, 1)
        classes = (
            soft_loss(ours, theirs, self.temperature)
            if self.no_object
            else functional.binary_cross_entropy_with_logits(ours, theirs.sigmoid())
        )
        return TaskLosses(
            hard=_matched(module, student, targets),
            soft=classes + _BOX_WEIGHT * functional.l1_loss(student.boxes, teacher.boxes),
            agree=torch.ones(len(student.logits), dtype=torch.bool, device=ours.device),
        )

    def predictions(self, answer: Boxes) -> list[Mapping[str, torch.Tensor]]:
        """`scores`, `class_labels`, `boxes` and `queries`, which they are of, of the most likely."""
        logits = answer.logits
        shares = logits.softmax(-1)[..., :-1] if self.no_object else logits.sigmoid()
        classes = shares.shape[-1]
        scores, places = shares.flatten(1).topk(min(_MOST_BOXES, shares[0].numel()), dim=1)
        queries = torch.div(places, classes, rounding_mode="floor")
        found: list[Mapping[str, torch.Tensor]] = [
            {
                "scores": score.cpu(),
                "class_labels": (place % classes).cpu(),
                "boxes": boxes[query].cpu(),
                "queries": query.cpu(),
            }
            for score, place, query, boxes in zip(scores, places, queries, answer.boxes, strict=True)
        ]
        return found

    def as_targets(self, predictions: Sequence[Mapping[str, torch.Tensor]]) -> list[Mapping[str, torch.Tensor]]:
        """The boxes that are likelier than not."""
        return [_likely(prediction) for prediction in predictions]

    def quality(
        self, predictions: Sequence[Mapping[str, torch.Tensor]], targets: Sequence[Mapping[str, torch.Tensor]]
    ) -> float:
        """mAP, by pycocotools; of targets without a box 0.

        IoU is the same in any units, so boxes count in thousandths of the input.

        Raises:
            GpusqError: pycocotools isn't installed.
        """
        judge = coco_evaluation(predictions, targets)
        return 0.0 if judge is None else max(0.0, float(judge.stats[0]))


def coco_evaluation(
    predictions: Sequence[Mapping[str, torch.Tensor]], targets: Sequence[Mapping[str, torch.Tensor]]
) -> Any:
    """Pycocotools' COCOeval after its three steps, image i having the id i; None without targets or predictions.

    Raises:
        GpusqError: pycocotools isn't installed.
    """
    truth, found = _as_coco(targets), _as_coco(predictions)
    if not truth or not found:
        return None
    hint = "pip install pycocotools"
    coco: Any = library("pycocotools.coco", hint=hint, place="mAP")
    evaluation: Any = library("pycocotools.cocoeval", hint=hint, place="mAP")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        wanted = coco.COCO()
        images = [{"id": index} for index in range(len(targets))]
        categories = [{"id": label} for label in sorted({box["category_id"] for box in truth})]
        # Older versions copy `info` without asking whether it is there.
        wanted.dataset = {"info": {}, "images": images, "annotations": truth, "categories": categories}
        wanted.createIndex()
        judge = evaluation.COCOeval(wanted, wanted.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge


def is_of_boxes(answer: Any) -> bool:
    """Whether a model's answer begins with logits [N, queries, classes] and boxes [N, queries, 4]."""
    if not isinstance(answer, (tuple, list)) or len(cast("Sequence[Any]", answer)) < 2:
        return False
    logits, boxes = cast("Sequence[Any]", answer)[:2]
    return (
        isinstance(logits, torch.Tensor)
        and isinstance(boxes, torch.Tensor)
        and logits.ndim == 3
        and boxes.shape == (*logits.shape[:2], 4)
    )


def _masks(answer: Sequence[Any]) -> torch.Tensor | None:
    """Logits of the queries' masks, which segmenting detectors answer behind the boxes."""
    for each in answer[2:3]:
        if isinstance(each, torch.Tensor) and each.ndim == 4 and each.shape[:2] == answer[0].shape[:2]:
            return each
    return None


def _matched(module: torch.nn.Module, answer: Boxes, targets: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    loss_of, config = cast("Any", getattr(module, "loss_function", None)), cast("Any", getattr(module, "config", None))
    if loss_of is None or config is None:
        raise GpusqError(
            f"a {type(module).__name__} has no matching loss of its own",
            place="the model",
            hint="train detectors of the transformers library, such as DetrForObjectDetection",
        )
    device = answer.logits.device
    plain = copy.copy(config)
    plain.auxiliary_loss = False  # the answer is the last decoder layer's alone
    labels = [
        {name: target[name][~target["crowd"]].to(device) for name in ("class_labels", "boxes")} for target in targets
    ]
    loss, *_ = loss_of(answer.logits, labels, device, answer.boxes, plain, None, None)
    return cast("torch.Tensor", loss)


def _likely(prediction: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    chosen = prediction["scores"] > _LIKELY
    labels, boxes = prediction["class_labels"][chosen], prediction["boxes"][chosen]
    return {"class_labels": labels, "boxes": boxes, "crowd": torch.zeros(len(labels), dtype=torch.bool)}


def _as_coco(found: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, Any]]:
    """Annotations, or results where there are scores."""
    entries: list[dict[str, Any]] = []
    for image, each in enumerate(found):
        centres, sides = _PIXELS * each["boxes"][:, :2], _PIXELS * each["boxes"][:, 2:]
        corners = cast("list[list[float]]", torch.cat([centres - sides / 2, sides], dim=1).double().tolist())
        for index, box in enumerate(corners):
            entry: dict[str, Any] = {
                "id": len(entries) + 1,
                "image_id": image,
                "category_id": int(each["class_labels"][index]),
                "bbox": box,
                "area": box[2] * box[3],
            }
            if "scores" in each:
                entry["score"] = float(each["scores"][index])
            else:
                entry["iscrowd"] = int(each["crowd"][index])
            entries.append(entry)
    return entries
