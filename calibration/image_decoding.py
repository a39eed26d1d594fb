"""An image file to pixels of 8 bits, within bounds of memory."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import counted

# Images of more pixels are decoded one at a time, and at reduced size where their format allows it.
WHOLE = 1 << 26
# What decoding one image may hold.
MOST_BYTES = 2 << 30
# Formats without pixels of 32 bits, whatever mode Pillow reads them into.
_NEVER_WIDER = frozenset({"PNG", "PPM"})
# TIFF's numbers of the tags.
_BITS_PER_SAMPLE = 258
_ORIENTATION = 274
# Bytes of a pixel in Pillow's memory; 4 in every other mode.
_NARROW = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
# Bytes of a pixel that the decoder holds besides: two canvases of 4 bytes, and a copy of one.
_CANVASES = {"WEBP": 12, "AVIF": 12, "HEIF": 12, "JXL": 12}
# libjpeg keeps 16-bit coefficients of the whole image, at its full size, where it comes in several scans.
_COEFFICIENTS = 6
# At most this many pixels are converted as float64 at once.
_BAND = 1 << 20
# Formats whose files often have several frames or pages.
_FRAMED = frozenset({".avif", ".gif", ".heic", ".heif", ".tif", ".tiff", ".webp"})
# Formats that cameras write.
_TURNED = frozenset({".avif", ".jpeg", ".jpg", ".jxl", ".tif", ".tiff", ".webp"})

_PILLOWS_LIMIT = threading.Lock()
one_large = threading.Lock()


@contextmanager
def opened(path: Path) -> Generator[Image.Image, None, None]:
    """The open image, not decoded yet. Pillow's own limit of pixels is set aside: see `require_memory`.

    Raises:
        GpusqError: The file is empty, or of no format that Pillow knows.
    """
    try:
        with _PILLOWS_LIMIT:
            usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = usual
    except UnidentifiedImageError as error:
        empty = path.stat().st_size == 0
        raise GpusqError(
            "not a readable image: " + ("the file is empty" if empty else "its format is unknown to Pillow"),
            hint="replace the file, or remove it from the folder",
        ) from error
    with image:
        yield image


def frames(path: Path) -> int:
    """Whether the file has several frames or pages, of which the first is read: 1 if so, else 0."""
    if path.suffix.lower() not in _FRAMED:
        return 0
    try:
        with opened(path) as image:
            return int(getattr(image, "is_animated", False))
    except Exception:  # a damaged file is told where its pixels are read
        return 0


def pixels_of(size: tuple[int, int]) -> int:
    """Width times height."""
    return size[0] * size[1]


def require_memory(image: Image.Image, size: tuple[int, int]) -> None:
    """Refuse an image that takes too much memory to decode.

    Args:
        image: Not decoded yet, and perhaps drafted to a smaller size.
        size: Width and height as the file has them.

    Raises:
        GpusqError: Names the size, what it takes and the limit.
    """
    kept = _NARROW.get(image.mode, 4)
    converted = 0 if image.mode in ("L", "RGB") else 4
    besides = _CANVASES.get(image.format or "", _COEFFICIENTS if image.info.get("progressive") else 0)
    taken = pixels_of(image.size) * (kept + converted) + pixels_of(size) * besides
    if taken > MOST_BYTES:
        raise GpusqError(
            f"the image is {size[0]:,} x {size[1]:,} pixels and takes {taken / (1 << 30):.1f} GiB to decode; the limit "
            f"is {MOST_BYTES >> 30} GiB",
            hint="scale it down to a few thousand pixels a side, or remove it from the folder",
        )


def eight_bits(image: Image.Image) -> Image.Image:
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
    return _scaled(image) if image.mode.startswith("I") else image


def _scaled(image: Image.Image) -> Image.Image:
    white = (1 << _bits(image)) - 1
    grey = np.empty((image.height, image.width), np.uint8)
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        values: npt.NDArray[Any] = np.asarray(image.crop((0, top, image.width, bottom))).astype(np.float64)
        grey[top:bottom] = np.floor(values * 255 / white + 0.5)
    return Image.fromarray(grey)


def _bits(image: Image.Image) -> int:
    """Of a grey pixel of more than 8; a TIFF says it, where it isn't 16."""
    tags: Any = getattr(image, "tag_v2", {})
    said: npt.NDArray[Any] = np.ravel(tags.get(_BITS_PER_SAMPLE, 16))
    return int(said[0])


def is_turned(path: Path) -> bool:
    """Whether the file's EXIF orientation says that it is to be turned or mirrored to be upright."""
    if path.suffix.lower() not in _TURNED:
        return False
    try:
        with opened(path) as image:
            return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # a damaged file is told where its pixels are read
        return False


def turned_remark(paths: tuple[Path, ...]) -> str:
    """One sentence on files with an EXIF orientation; empty where there are none."""
    turned = sum(map(is_turned, paths))
    if not turned:
        return ""
    has = "has" if turned == 1 else "have"
    return (
        f"{turned} of {counted(len(paths), 'image')} {has} an EXIF orientation, which isn't applied: turn the pixels "
        "themselves if they should be upright"
    )


def frames_remark(paths: tuple[Path, ...]) -> str:
    """One sentence on files with several frames; empty where there are none."""
    several = sum(map(frames, paths))
    if not several:
        return ""
    has = "has" if several == 1 else "have"
    return f"{several} of {counted(len(paths), 'image')} {has} several frames or pages: the first is read"
