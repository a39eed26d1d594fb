"""Where an image's pixels come to lie in a model's input."""

from __future__ import annotations

import math
from typing import NamedTuple

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.errors import GpusqError

# Of a longer image the crop shows next to nothing.
_LONGEST = 200

_Size = tuple[int, int]
_Box = tuple[int, int, int, int]


class Frame(NamedTuple):
    """The width and height that an image is resized to, and the crop from that: left, top, right, bottom.

    `inside`: the part of the crop that the resized image has.
    """

    size: _Size
    crop: _Box
    inside: _Box


def frame_of(size: _Size, preprocessing: Preprocessing) -> Frame:
    """Of an image of a width and height.

    Raises:
        GpusqError: The image is so long that the crop leaves nearly all of it out.
    """
    # 224 / (224 / 232) is 231.99…: the small term makes it 232.
    width, height = (
        math.floor(side / preprocessing.crop_fraction + 1e-6) for side in (preprocessing.width, preprocessing.height)
    )
    resized = _resized(size, (width, height), preprocessing)
    beyond = max(resized[0] / width, resized[1] / height)
    if beyond > _LONGEST:
        raise GpusqError(
            f"the image is {size[0]:,} x {size[1]:,} pixels: the centre crop keeps 1/{beyond:,.0f} of it, the least is "
            f"1/{_LONGEST}",
            hint="cut it into pieces that look like the model's inputs, or remove it from the folder",
        )
    left, top = (
        _offset(side - kept, preprocessing)
        for side, kept in zip(resized, (preprocessing.width, preprocessing.height), strict=True)
    )
    right, bottom = left + preprocessing.width, top + preprocessing.height
    inside = (max(0, left), max(0, top), min(resized[0], right), min(resized[1], bottom))
    return Frame(size=resized, crop=(left, top, right, bottom), inside=inside)


def _resized(size: _Size, wanted: _Size, preprocessing: Preprocessing) -> _Size:
    """Rounded as timm rounds: for a square down, as torchvision and transformers do, else to the nearest."""
    if preprocessing.crop_mode == "squash":
        return wanted
    if preprocessing.crop_mode == "center" and wanted[0] == wanted[1]:
        side, shorter = wanted[0], min(size)
        return side * size[0] // shorter, side * size[1] // shorter
    ratios = [side / want for side, want in zip(size, wanted, strict=True)]
    ratio = max(ratios) if preprocessing.crop_mode == "border" else min(ratios)
    return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))


def _offset(margin: int, preprocessing: Preprocessing) -> int:
    """Of the crop from the left or the top; below 0 where the image is smaller."""
    if margin < 0:
        return -(-margin // 2)
    return margin // 2 if preprocessing.crop_offset == "floor" else round(margin / 2)
