"""Objects that were found in an image, told and drawn: boxes, and masks where a model answers them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpusq_deploy.benchmarks.accuracy.answers import class_name
from gpusq_deploy.benchmarks.accuracy.drawing import Box, draw_boxes, draw_masks, opened_picture, save_picture
from gpusq_deploy.benchmarks.accuracy.shown import Found, ShownImage, mask_of, text_of

Corners = tuple[float, float, float, float]


class Instances(NamedTuple):
    """Objects, the surest first: corners in the image's pixels, classes, scores, and masks [D, height, width]."""

    boxes: Sequence[Corners]
    labels: Sequence[int]
    scores: Sequence[float]
    masks: npt.NDArray[np.bool_] | None = None


def shown_instances(
    image: Path, instances: Instances, names: Sequence[str], place: Path | None, *, masks: bool
) -> ShownImage:
    """Told, and drawn on a copy of the image where it has a place; with `masks` the masks are told too.

    Raises:
        GpusqError: The copy can't be written, or pycocotools isn't there for the masks.
    """
    told = instances.masks if masks else None
    found = [
        Found(
            label=class_name(label, names),
            share=score,
            box=corners,
            mask=None if told is None else mask_of(told[index]),
        )
        for index, (corners, label, score) in enumerate(
            zip(instances.boxes, instances.labels, instances.scores, strict=True)
        )
    ]
    if place is not None:
        _draw(image, instances, found, place)
    return ShownImage(image=str(image), found=tuple(found), drawn=None if place is None else str(place))


def _draw(image: Path, instances: Instances, found: Sequence[Found], place: Path) -> None:
    """Objects with masks have a colour each, those without their class's."""
    picture, colours = opened_picture(image), list(instances.labels)
    if instances.masks is not None:
        colours = list(range(len(found)))
        picture = draw_masks(picture, instances.masks)
    boxes = [
        Box(corners, colour, text_of(each))
        for corners, colour, each in zip(instances.boxes, colours, found, strict=True)
    ]
    save_picture(draw_boxes(picture, boxes), place)
