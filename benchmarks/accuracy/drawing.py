"""Boxes, label maps and classes on a copy of a picture."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from gpusq_deploy.artifacts import written_whole
from gpusq_deploy.errors import GpusqError

_GOLDEN = 0.618034  # turns of the hue from class to class: neighbours look different
_OVERLAY = 0.5
_PAD = 2  # pixels around text
_LIGHT = 127.5


class Box(NamedTuple):
    """Corners in pixels, left, top, right, bottom; its class, and what is written at it."""

    corners: tuple[float, float, float, float]
    label: int
    text: str


def draw_boxes(picture: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy with boxes, the first of them on top."""
    drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    width = max(2, min(picture.size) // 200)
    for box in reversed(boxes):
        left, top, right, bottom = box.corners
        color = color_of(box.label)
        pen.rectangle(
            (min(left, right), min(top, bottom), max(left, right), max(top, bottom)), outline=color, width=width
        )
        _write(pen, picture, (max(0.0, left), max(0.0, top)), box.text, color)
    return drawn


def draw_masks(picture: Image.Image, masks: npt.NDArray[np.bool_]) -> Image.Image:
    """A copy under a colour for each mask, booleans [masks, height, width], the first of them on top."""
    owner = np.full(masks.shape[1:], -1, np.int16)
    for index in reversed(range(len(masks))):
        owner[masks[index]] = index
    return _tinted(picture, owner)


def draw_map(picture: Image.Image, labels: npt.NDArray[np.int16], texts: Sequence[tuple[int, str]]) -> Image.Image:
    """A copy under the colours of its pixels' classes, int16 [height, width], with a legend; below 0 it stays."""
    drawn = _tinted(picture, labels)
    _write_lines(drawn, [(text, color_of(label)) for label, text in texts])
    return drawn


def draw_classes(picture: Image.Image, texts: Sequence[str]) -> Image.Image:
    """A copy with lines of text."""
    drawn = picture.copy()
    _write_lines(drawn, [(text, (40, 40, 40)) for text in texts])
    return drawn


def color_of(label: int) -> tuple[int, int, int]:
    """A class's colour."""
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1, 0.75, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def opened_picture(path: Path) -> Image.Image:
    """An image file in RGB."""
    with Image.open(path) as image:
        converted: Image.Image = image.convert("RGB")
    return converted


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all; its folder is made where it is missing.

    Raises:
        GpusqError: The disk refused.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        with written_whole(path) as temporary:
            picture.save(temporary, "PNG")
    except OSError as error:
        raise GpusqError(f"cannot write the picture: {error.strerror}", place=str(path)) from error


def _tinted(picture: Image.Image, labels: npt.NDArray[np.int16]) -> Image.Image:
    """Half the colours of labels; where they are below 0, the picture."""
    colors = np.array([color_of(label) for label in range(max(0, int(labels.max())) + 1)], np.uint8)
    blended = Image.blend(picture, Image.fromarray(colors[labels.clip(min=0)]), _OVERLAY)
    return Image.composite(blended, picture, Image.fromarray(labels >= 0))


def _write_lines(picture: Image.Image, lines: Sequence[tuple[str, tuple[int, int, int]]]) -> None:
    pen, top = ImageDraw.Draw(picture), float(_PAD)
    for text, color in lines:
        top = _write(pen, picture, (float(_PAD), top), text, color)


def _write(
    pen: ImageDraw.ImageDraw, picture: Image.Image, corner: tuple[float, float], text: str, color: tuple[int, int, int]
) -> float:
    """White on the colour, or black on a light one; answers where it ends below."""
    font = ImageFont.load_default(size=max(10, min(picture.size) // 25))
    inside = (max(0.0, min(corner[0], picture.width - pen.textlength(text, font=font))), corner[1])
    box = pen.textbbox(inside, text, font=font)
    pen.rectangle((box[0] - _PAD, box[1] - _PAD, box[2] + _PAD, box[3] + _PAD), fill=color)
    pen.text(inside, text, fill=_ink(color), font=font)
    return float(box[3] + _PAD)


def _ink(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever differs more in luma (ITU-R BT.601)."""
    luma = sum(share * channel for share, channel in zip((0.299, 0.587, 0.114), color, strict=True))
    return (0, 0, 0) if luma > _LIGHT else (255, 255, 255)
