"""One image file to one model input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.errors import GpusqError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Formats without pixels of 32 bits, whatever mode Pillow reads them into.
_NEVER_WIDER = frozenset({"PNG", "PPM"})
# TIFF's number of the tag.
_BITS_PER_SAMPLE = 258

Sample = npt.NDArray[np.float32]


def image_files(folder: Path) -> tuple[Path, ...]:
    """Image files below `folder`, at any depth, sorted by path so that every machine sees one order."""
    return tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()))


def load_image(path: Path, preprocessing: Preprocessing) -> Sample:
    """Read, resize the shorter side, crop the centre, scale and normalise; see `Preprocessing`.

    Returns:
        float32 [channels, height, width].

    Raises:
        GpusqError: The file can't be read as an image, or doesn't say which of its values is white.
    """
    try:
        with Image.open(path) as image:
            converted = _eight_bits(image).convert("L" if preprocessing.channels == 1 else "RGB")
    except GpusqError as error:
        raise GpusqError(error.what, place=str(path), hint=error.hint) from error
    except Exception as error:  # Pillow's decoders raise what they like on a damaged file: SyntaxError, struct.error, …
        raise GpusqError(
            f"not a readable image: {error}", place=str(path), hint="replace the file, or remove it from the folder"
        ) from error
    return sample_from_image(converted, preprocessing)


def sample_from_image(image: Image.Image, preprocessing: Preprocessing) -> Sample:
    """As `load_image`, from an image of mode L or RGB that is already open."""
    cropped = _centre_crop(_resized(image, preprocessing), preprocessing)
    pixels: npt.NDArray[Any] = np.asarray(cropped, dtype=np.float32) / 255
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    mean = np.asarray(preprocessing.mean, dtype=np.float32)[:, None, None]
    std = np.asarray(preprocessing.std, dtype=np.float32)[:, None, None]
    return np.ascontiguousarray((planes - mean) / std, dtype=np.float32)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in a mode of 8 bits per channel, which Pillow converts to L and RGB faithfully.

    1. Grey of 16 bits, or of 12 in a TIFF: v · 255 / (2^bits - 1), rounded. Pillow would cut off at 255: white.
    2. 32-bit integers and floats: nothing says which value is white. But PNG and PGM have 16 bits at most, which
       Pillow may read into 32; a PGM's are scaled to 16 then.
    3. Any other as it is, but for the opacity that a palette may have. It isn't looked at, as timm and torchvision
       don't.

    Raises:
        GpusqError: The second case.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in _NEVER_WIDER):
        raise GpusqError(
            f"pixels are {'32-bit integers' if image.mode == 'I' else 'floats'}, and nothing says which value is white",
            hint="save it with 8 or 16 bits per channel, or give preprocessed arrays (.npy)",
        )
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    if not image.mode.startswith("I"):
        return image
    white = (1 << _bits(image)) - 1
    values: npt.NDArray[Any] = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.floor(values * 255 / white + 0.5).astype(np.uint8))


def _bits(image: Image.Image) -> int:
    """Of a grey pixel of more than 8; a TIFF says it, where it isn't 16."""
    tags: Any = getattr(image, "tag_v2", {})
    said: npt.NDArray[Any] = np.ravel(tags.get(_BITS_PER_SAMPLE, 16))
    return int(said[0])


def _resized(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Rounded as timm and torchvision round: both sides down, in whole numbers."""
    # 224 / (224 / 232) is 231.99…: the small term makes it 232.
    width, height = (
        math.floor(side / preprocessing.crop_fraction + 1e-6) for side in (preprocessing.width, preprocessing.height)
    )
    if width * image.height >= height * image.width:
        size = (width, image.height * width // image.width)
    else:
        size = (image.width * height // image.height, height)
    return image.resize(size, _RESAMPLING[preprocessing.interpolation])


def _centre_crop(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    left = round((image.width - preprocessing.width) / 2)
    top = round((image.height - preprocessing.height) / 2)
    return image.crop((left, top, left + preprocessing.width, top + preprocessing.height))
