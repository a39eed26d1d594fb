"""A whole Mask R-CNN of its parts' sessions: dense parts on any runtime, what lies between on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpusq_deploy.calibration import filled
from gpusq_deploy.contrib.detectors.between import DETECTIONS, MASKS, PROPOSALS
from gpusq_deploy.engines import Session, TensorSpec, open_onnx
from gpusq_deploy.errors import GpusqError

Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """What was found in one image, the surest first.

    Attributes:
        boxes: float32 [D, 4]: x1, y1, x2, y2 in pixels.
        labels: int64 [D]; 0, the background, is none of them.
        scores: float32 [D].
        masks: float32 [D, 1, H, W], in 0…1; from 0.5 on a pixel belongs to what was found.
    """

    boxes: Floats
    labels: npt.NDArray[np.int64]
    scores: Floats
    masks: Floats


class MaskRcnn:
    """Three sessions of the dense parts, and the folder that `write_between` wrote.

    The dense part's batch is 1. Regions go through the heads at the size of their batch where it is fixed, the last one
    repeated to fill it, else all at once. Not safe to share between threads.

    Args:
        dense: Image to maps, objectness and deltas; its outputs in the order of `DensePart`.
        box: Pooled regions to class logits and deltas.
        mask: Pooled regions to mask logits.
        between: The folder.

    Attributes:
        between: Sessions of the graphs between the parts, in their order.
        size: Height and width of the largest image, in pixels.

    Raises:
        GpusqError: The parts don't fit each other, or the graphs can't be loaded.
    """

    def __init__(self, *, dense: Session, box: Session, mask: Session, between: Path) -> None:
        self._dense, self._box, self._mask = dense, box, mask
        self.between: Sequence[Session] = [open_onnx(between / name) for name in (PROPOSALS, DETECTIONS, MASKS)]
        proposals, detections, _ = self.between
        self._names = _dense_names(dense.outputs, proposals.inputs, place=str(between))
        _require_heads(box, 2, proposals.outputs[1], "the box part", place=str(between))
        _require_heads(mask, 1, detections.outputs[3], "the mask part", place=str(between))
        self.size: tuple[int, int] = (dense.inputs[0].shape[2], dense.inputs[0].shape[3])

    def detect(self, image: Floats, *, original: tuple[int, int] | None = None, threshold: float = 0.0) -> Detections:
        """Detect in one image.

        Args:
            image: float32 [3, h, w], normalised; a smaller one than `size` is padded with zeros at its right and below.
            original: Height and width that boxes and masks are given in; those of `image` where None.
            threshold: What is likelier is answered, 0…1.

        Raises:
            GpusqError: The image doesn't fit, or a runtime failed.
        """
        padded = self._padded(image)
        proposals, detections, masks = self.between
        height, width = image.shape[1:]
        size = np.array([height, width], np.float32)
        values = _run(self._dense, [padded])
        held: dict[str, npt.NDArray[Any]] = {"size": size, **dict(zip(self._names, values, strict=True))}
        found = _fed(proposals, held)
        boxes, pooled = found["boxes"], found["pooled"]
        logits, deltas = self._heads(self._box, pooled)
        found = _fed(detections, {**held, "logits": logits, "deltas": deltas, "proposals": boxes})
        likely = found["scores"] > threshold
        found = {name: found[name][likely] for name in ("boxes", "labels", "scores", "pooled")}
        (drawn,) = self._heads(self._mask, found["pooled"])
        shown = original or (height, width)
        ratio = np.array([shown[1] / width, shown[0] / height] * 2, np.float32)
        labels, boxes = found["labels"], found["boxes"] * ratio
        feeds = {"logits": drawn, "labels": labels, "boxes": boxes, "size": np.array(shown)}
        return Detections(boxes=boxes, labels=labels, scores=found["scores"], masks=_fed(masks, feeds)["masks"])

    def close(self) -> None:
        """Give back the graphs between the parts; the sessions of the parts are their owner's."""
        for session in self.between:
            session.close()

    def _padded(self, image: Floats) -> Floats:
        fits = image.ndim == 3 and image.shape[0] == 3 and min(image.shape) > 0
        if not fits or image.shape[1] > self.size[0] or image.shape[2] > self.size[1]:
            height, width = self.size
            raise GpusqError(
                f"the image is {image.dtype} {list(image.shape)}, and the detector is for {height}x{width}",
                place="image",
                hint="give float32 [3, h, w], normalised, and scaled down to fit; a smaller one is padded",
            )
        padded = np.zeros((1, 3, *self.size), np.float32)
        padded[0, :, : image.shape[1], : image.shape[2]] = image
        return padded

    def _heads(self, session: Session, pooled: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """The part's answers for all regions; with none, it isn't asked."""
        spec = session.inputs[0]
        if not len(pooled):
            return [np.zeros((0, *(max(side, 1) for side in out.shape[1:])), np.float32) for out in session.outputs]
        step = len(pooled) if spec.shape[0] < 0 else spec.shape[0]
        pieces = [filled(pooled[start : start + step], step) for start in range(0, len(pooled), step)]
        answers = [_run(session, [piece]) for piece in pieces]
        return [np.concatenate(parts)[: len(pooled)] for parts in zip(*answers, strict=True)]


def _run(session: Session, inputs: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    feeds = {
        spec.name: np.ascontiguousarray(value, dtype=spec.dtype)
        for spec, value in zip(session.inputs, inputs, strict=True)
    }
    return list(session.run(feeds).values())


def _fed(session: Session, values: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Run on those of the values that the graph takes."""
    feeds = {spec.name: np.ascontiguousarray(values[spec.name], dtype=spec.dtype) for spec in session.inputs}
    return session.run(feeds)


def _dense_names(outputs: Sequence[TensorSpec], takes: Sequence[TensorSpec], *, place: str) -> list[str]:
    """The dense part's outputs by the names of the graph that reads them: maps, objectness and deltas, as many of each.

    Raises:
        GpusqError: It has other outputs, or of other shapes.
    """
    count = sum(spec.name.startswith("objectness_") for spec in takes)
    names = [f"{kind}_{index}" for kind in ("map", "objectness", "deltas") for index in range(count)]
    given = dict(zip(names, outputs, strict=False))
    wrong = [
        f"{spec.name} is {list(given[spec.name].shape)}, not {list(spec.shape)}"
        for spec in takes
        if spec.name in given and not _alike(given[spec.name].shape, spec.shape)
    ]
    if len(outputs) != len(names):
        wrong = [f"it has {len(outputs)} outputs, not {len(names)}"]
    if wrong:
        raise GpusqError(
            f"the dense part isn't the one that these graphs are for: {'; '.join(wrong)}",
            place=place,
            hint="build it, and write the graphs, for one detector and one size of image, with --batch 1:1:1",
        )
    return names


def _require_heads(session: Session, outputs: int, pooled: TensorSpec, what: str, *, place: str) -> None:
    takes = session.inputs[0]
    if len(session.outputs) == outputs and _alike(takes.shape[1:], pooled.shape[1:]):
        return
    raise GpusqError(
        f"{what} takes {list(takes.shape)} and has {len(session.outputs)} outputs, "
        f"not {list(pooled.shape)} and {outputs}",
        place=place,
        hint="build the parts, and write the graphs, for one detector",
    )


def _alike(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(-1 in (a, b) or a == b for a, b in zip(one, other, strict=True))
