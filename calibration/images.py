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

Sample = npt.NDArray[np.float32]


def image_files(folder: Path) -> tuple[Path, ...]:
    """Image files below `folder`, at any depth, sorted by path so that every machine sees one order."""
    return tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()))


def load_image(path: Path, preprocessing: Preprocessing) -> Sample:
    """Read, resize the shorter side, crop the centre, scale and normalise; see `Preprocessing`.

    Returns:
        float32 [channels, height, width].

    Raises:
        GpusqError: The file can't be read as an image.
    """
    try:
        with Image.open(path) as image:
            converted = image.convert("L" if preprocessing.channels == 1 else "RGB")
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
