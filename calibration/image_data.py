"""One image file to one model input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.calibration.image_decoding import WHOLE, eight_bits, one_large, opened, pixels_of, require_memory
from gpusq_deploy.calibration.image_frame import Frame, frame_of
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
# Large images are averaged down to this many times the size that they are resized to, as Pillow's thumbnails are.
_GAP = 3

Sample = npt.NDArray[np.float32]
_Taken = TypeVar("_Taken")


def load_image(path: Path, preprocessing: Preprocessing) -> Sample:
    """Read, resize, crop the centre, scale and normalise; see `Preprocessing`.

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
    """As `load_image`, but scaled to fit height and width, one of which it fills, and not cropped; `squash` fills both.

    Raises:
        GpusqError: See `load_image`.
    """
    if isinstance(image, Path):
        return _read(image, lambda found: fit_image(found, preprocessing))
    width, height = image.size
    scale = min(preprocessing.height / height, preprocessing.width / width)
    sides = {"height": max(1, round(height * scale)), "width": max(1, round(width * scale))}
    if preprocessing.crop_mode == "squash":
        sides = {}
    whole = msgspec.structs.replace(preprocessing, crop_fraction=1.0, crop_mode="squash", **sides)
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
    frame = frame_of(image.size, preprocessing)
    filtering = _RESAMPLING[preprocessing.interpolation]
    if pixels_of(image.size) > WHOLE:
        with one_large:
            return _bordered(_reduced(image, frame, filtering, mode), frame, preprocessing)
    converted = eight_bits(image).convert(mode)
    if pixels_of(frame.size) <= _MOST_RESIZED:
        cropped = converted.resize(frame.size, filtering).crop(frame.inside)
    elif filtering == Image.Resampling.NEAREST:
        cropped = _picked(converted, frame)
    else:
        cropped = _boxed(converted, frame, filtering, gap=None)
    return _bordered(cropped, frame, preprocessing)


def _bordered(cropped: Image.Image, frame: Frame, preprocessing: Preprocessing) -> Image.Image:
    """What of the crop lies beyond the image, filled with the mean."""
    if frame.inside == frame.crop:
        return cropped
    fill = [round(255 * value) for value in preprocessing.mean]
    colour = fill[0] if len(fill) == 1 else tuple(fill)
    whole = Image.new(cropped.mode, (preprocessing.width, preprocessing.height), colour)
    whole.paste(cropped, (frame.inside[0] - frame.crop[0], frame.inside[1] - frame.crop[1]))
    return whole


def _reduced(image: Image.Image, frame: Frame, filtering: Image.Resampling, mode: str) -> Image.Image:
    """The crop of a large image, of which as little is decoded and converted as its format allows."""
    size = image.size
    image.draft(None, (_GAP * frame.size[0], _GAP * frame.size[1]))
    require_memory(image, size)
    flat = eight_bits(image)
    if flat.mode not in ("L", "RGB"):
        flat = flat.convert(mode)
    return _boxed(flat, frame, filtering, gap=_GAP).convert(mode)


def _boxed(image: Image.Image, frame: Frame, filtering: Image.Resampling, *, gap: float | None) -> Image.Image:
    """What a resize and a crop make, without the pixels that the crop leaves out.

    The filters reach beyond the box, so the pixels are the same but for the rounding of the box to float32; and, with
    a `gap`, for the averaging of an image down to that many times its new size.
    """
    left, top, right, bottom = frame.inside
    across, down = image.width / frame.size[0], image.height / frame.size[1]
    box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
    return image.resize((right - left, bottom - top), filtering, box=box, reducing_gap=gap)


def _picked(image: Image.Image, frame: Frame) -> Image.Image:
    """What a resize to the nearest pixels and a crop make: which those are is asked of Pillow, one axis at a time."""
    left, top, right, bottom = frame.inside
    columns = _nearest(image.width, frame.size[0])[left:right]
    rows = _nearest(image.height, frame.size[1])[top:bottom]
    return Image.fromarray(np.asarray(image)[rows][:, columns])


def _nearest(side: int, resized: int) -> npt.NDArray[np.int32]:
    places = Image.fromarray(np.arange(side, dtype=np.int32)[None])
    found: npt.NDArray[np.int32] = np.asarray(places.resize((resized, 1), Image.Resampling.NEAREST))[0]
    return found
