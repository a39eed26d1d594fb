"""One image file to one model input."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.calibration.image_decoding import WHOLE, eight_bits, one_large, opened, pixels_of, require_memory
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import one_line

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# An image that would have more pixels once resized is cropped before: only the crop is resized.
_MOST_RESIZED = 1 << 24
# Of a longer image the crop shows next to nothing.
_LONGEST = 200
# Large images are averaged down to this many times the size that they are resized to, as Pillow's thumbnails are.
_GAP = 3

Sample = npt.NDArray[np.float32]
_Taken = TypeVar("_Taken")


class _Frame(NamedTuple):
    """The size that an image is resized to, and the crop from that: left, top, right, bottom."""

    size: tuple[int, int]
    crop: tuple[int, int, int, int]


def load_image(path: Path, preprocessing: Preprocessing) -> Sample:
    """Read, resize the shorter side, crop the centre, scale and normalise; see `Preprocessing`.

    Of several frames or pages the first is read. An orientation in the file's EXIF isn't looked at, as timm and
    torchvision don't. An image of more than 2^26 pixels is decoded at reduced size, if its format is JPEG, and averaged
    down before it is resized; one that would be resized to more than 2^24 is cropped before.

    Returns:
        float32 [channels, height, width].

    Raises:
        GpusqError: The file can't be read as an image, is too large or too long, or doesn't say which of its values is
            white.
    """
    return _read(path, lambda image: _normalised(_drawn(image, preprocessing), preprocessing))


class Fitted(NamedTuple):
    """An image that was scaled as a whole: float32 [channels, h, w], and the height and width that it had."""

    sample: Sample
    original: tuple[int, int]


def fit_image(image: Path | Image.Image, preprocessing: Preprocessing) -> Fitted:
    """As `load_image`, but scaled to fit height and width, one of which it fills, and not cropped.

    Raises:
        GpusqError: See `load_image`.
    """
    if isinstance(image, Path):
        return _read(image, lambda found: fit_image(found, preprocessing))
    width, height = image.size
    scale = min(preprocessing.height / height, preprocessing.width / width)
    sides = {"height": max(1, round(height * scale)), "width": max(1, round(width * scale))}
    whole = msgspec.structs.replace(preprocessing, crop_fraction=1.0, **sides)
    return Fitted(_normalised(_drawn(image, whole), preprocessing), (height, width))


def _read(path: Path, take: Callable[[Image.Image], _Taken]) -> _Taken:
    """What `take` makes of an image file.

    Raises:
        GpusqError: See `load_image`.
    """
    try:
        with opened(path) as image:
            return take(image)
    except GpusqError as error:
        raise GpusqError(error.what, place=str(path), hint=error.hint) from error
    except OSError as error:
        if error.strerror is None:  # Pillow's own
            raise _unreadable(path, one_line(error)) from error
        raise GpusqError(
            f"cannot read the image: {error.strerror}", place=str(path), hint="check the file and its permissions"
        ) from error
    except Exception as error:  # Pillow's decoders raise what they like on a damaged file: SyntaxError, struct.error, …
        raise _unreadable(path, one_line(error)) from error


def sample_from_image(image: Image.Image, preprocessing: Preprocessing) -> Sample:
    """As `load_image`, from an image that is already open."""
    return _normalised(_drawn(image, preprocessing), preprocessing)


def _unreadable(path: Path, why: str) -> GpusqError:
    return GpusqError(
        f"not a readable image: {why}", place=str(path), hint="replace the file, or remove it from the folder"
    )


def _normalised(cropped: Image.Image, preprocessing: Preprocessing) -> Sample:
    pixels: npt.NDArray[Any] = np.asarray(cropped, dtype=np.float32) / 255
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    mean = np.asarray(preprocessing.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(preprocessing.std, dtype=np.float32)[:, None, None]
    return np.ascontiguousarray((planes - mean) / std, dtype=np.float32)


def _drawn(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The crop, in mode L or RGB."""
    mode = "L" if preprocessing.channels == 1 else "RGB"
    frame = _frame(image.size, preprocessing)
    filtering = _RESAMPLING[preprocessing.interpolation]
    if pixels_of(image.size) > WHOLE:
        with one_large:
            return _reduced(image, frame, filtering, mode)
    converted = eight_bits(image).convert(mode)
    if pixels_of(frame.size) > _MOST_RESIZED:
        if filtering == Image.Resampling.NEAREST:
            return _picked(converted, frame)
        return _boxed(converted, frame, filtering, gap=None)
    return converted.resize(frame.size, filtering).crop(frame.crop)


def _reduced(image: Image.Image, frame: _Frame, filtering: Image.Resampling, mode: str) -> Image.Image:
    """The crop of a large image, of which as little is decoded and converted as its format allows."""
    size = image.size
    image.draft(None, (_GAP * frame.size[0], _GAP * frame.size[1]))
    require_memory(image, size)
    flat = eight_bits(image)
    if flat.mode not in ("L", "RGB"):
        flat = flat.convert(mode)
    return _boxed(flat, frame, filtering, gap=_GAP).convert(mode)


def _boxed(image: Image.Image, frame: _Frame, filtering: Image.Resampling, *, gap: float | None) -> Image.Image:
    """What a resize and a crop make, without the pixels that the crop leaves out.

    The filters reach beyond the box, so the pixels are the same but for the rounding of the box to float32; and, with
    a `gap`, for the averaging of an image down to that many times its new size.
    """
    left, top, right, bottom = frame.crop
    across, down = image.width / frame.size[0], image.height / frame.size[1]
    box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    return image.resize((right - left, bottom - top), filtering, box=box, reducing_gap=gap)


def _picked(image: Image.Image, frame: _Frame) -> Image.Image:
    """What a resize to the nearest pixels and a crop make: which those are is asked of Pillow, one axis at a time."""
    left, top, right, bottom = frame.crop
    columns = _nearest(image.width, frame.size[0])[left:right]
    rows = _nearest(image.height, frame.size[1])[top:bottom]
    return Image.fromarray(np.asarray(image)[rows][:, columns])


def _nearest(side: int, resized: int) -> npt.NDArray[np.int32]:
    places = Image.fromarray(np.arange(side, dtype=np.int32)[None])
    found: npt.NDArray[np.int32] = np.asarray(places.resize((resized, 1), Image.Resampling.NEAREST))[0]
    return found


def _frame(size: tuple[int, int], preprocessing: Preprocessing) -> _Frame:
    """Rounded as timm and torchvision round: both sides down, in whole numbers.

    Raises:
        GpusqError: The image is so long that the crop leaves nearly all of it out.
    """
    # 224 / (224 / 232) is 231.99…: the small term makes it 232.
    width, height = (
        math.floor(side / preprocessing.crop_fraction + 1e-6) for side in (preprocessing.width, preprocessing.height)
    )
    if width * size[1] >= height * size[0]:
        resized = (width, size[1] * width // size[0])
    else:
        resized = (size[0] * height // size[1], height)
    beyond = max(resized[0] / width, resized[1] / height)
    if beyond > _LONGEST:
        raise GpusqError(
            f"the image is {size[0]:,} x {size[1]:,} pixels: the centre crop keeps 1/{beyond:,.0f} of it, the least is "
            f"1/{_LONGEST}",
            hint="cut it into pieces that look like the model's inputs, or remove it from the folder",
        )
    left, top = round((resized[0] - preprocessing.width) / 2), round((resized[1] - preprocessing.height) / 2)
    return _Frame(size=resized, crop=(left, top, left + preprocessing.width, top + preprocessing.height))
