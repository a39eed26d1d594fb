"""What is told of images: classes, boxes, masks and label maps, as values and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts import Value, require_folder
from gpusq_deploy.benchmarks.accuracy.values import TaskName
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import library

_MOST_LINES = 5  # of a label map's classes in words


class Mask(Value):
    """Pixels of an image in COCO's compressed run-length encoding: `size` is height and width."""

    size: tuple[int, int]
    counts: str


class Found(Value):
    """A class: its probability, or its share of the pixels of a label map; `box` in the image's pixels, corners.

    `mask`: the pixels of an object, or of a class of a label map, where masks were asked for.
    """

    label: str
    share: float
    box: tuple[float, float, float, float] | None = None
    mask: Mask | None = None


class ShownImage(Value):
    """What was found in an image, the likeliest first; `drawn` is the copy that shows it."""

    image: str
    found: tuple[Found, ...]
    drawn: str | None = None


class RunAnswers(Value):
    """What gpusq-run found."""

    schema: Literal["gpusq.run/1"] = "gpusq.run/1"
    model: str
    runtime: str
    task: TaskName
    images: tuple[ShownImage, ...]


def mask_of(pixels: npt.NDArray[np.bool_]) -> Mask:
    """Booleans [height, width], encoded by pycocotools.

    Raises:
        GpusqError: pycocotools isn't installed.
    """
    coco: Any = library("pycocotools.mask", hint="pip install pycocotools", place="masks")
    encoded = coco.encode(np.asfortranarray(pixels, dtype=np.uint8))
    height, width = pixels.shape
    return Mask(size=(height, width), counts=encoded["counts"].decode("ascii"))


def text_of(found: Found) -> str:
    """A class and its share."""
    return f"{found.label} {found.share:.1%}"


def texts_of(shown: ShownImage) -> Sequence[str]:
    """What was found in an image, one line for each; of a label map the largest classes."""
    told = [each for index, each in enumerate(shown.found) if each.box is not None or index < _MOST_LINES]
    lines = [
        text_of(each) + ("" if each.box is None else f" at {', '.join(f'{side:.0f}' for side in each.box)}")
        for each in told
    ]
    rest = shown.found[len(told) :]
    if rest:
        lines.append(f"others ({len(rest)}) {sum(each.share for each in rest):.1%}")
    return lines


def places_of(images: Sequence[Path], out: Path | None, *, force: bool) -> list[Path | None]:
    """Where each image's copy goes.

    Raises:
        GpusqError: Two would go to one place, or something lies there.
    """
    if out is None:
        return [None for _ in images]
    require_folder(out / "x" if out.is_dir() else out)
    places = [out / f"{image.stem}.png" for image in images]
    twice = [place for place, count in Counter(places).items() if count > 1]
    if twice:
        raise GpusqError("two images would be drawn to one file", place=str(twice[0]), hint="run them one by one")
    for place, image in zip(places, images, strict=True):
        if place.resolve() == image.resolve():
            raise GpusqError("the copy would replace the image", place=str(place), hint="name another --out")
        if place.exists() and not force:
            raise GpusqError("the copy exists", place=str(place), hint="name another --out, or replace it with --force")
    return list(places)
