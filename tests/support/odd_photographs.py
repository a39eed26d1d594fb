"""Real photographs cut to odd sizes, and saved in odd modes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image

# Width and height: landscape, portrait, 8 : 1, 1 : 8, smaller than most models, and margins of every remainder by 4.
SIZES = ((331, 173), (197, 399), (600, 75), (63, 504), (111, 90), (501, 333), (333, 332))
ORIENTATION = 0x0112


def photograph(width: int, height: int) -> Image.Image:
    """A cut of scikit-image's cup of coffee, turned where it must be high."""
    library: Any = skimage.data  # untyped
    whole: Image.Image = Image.fromarray(library.coffee())
    if height > whole.height:
        whole = whole.transpose(Image.Transpose.ROTATE_90)
    return whole.crop((7, 11, 7 + width, 11 + height)) if height + 11 <= whole.height else whole.resize((width, height))


def of_odd_modes(folder: Path) -> Mapping[str, tuple[Path, Image.Image]]:
    """Files, and the RGB image that the usual loaders make of each: `Image.open(path).convert("RGB")`.

    Of 16 bits Pillow's own conversion is white wherever a pixel is above 255; there it is v · 255 / 65535, rounded.
    """
    colours = photograph(331, 173)
    alpha = colours.convert("L").point(lambda value: 255 - value)
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    palette, clear, see_through = colours.quantize(64), colours.convert("LA"), colours.convert("RGBA")
    clear.putalpha(alpha)
    see_through.putalpha(alpha)
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "grey.png": (colours.convert("L"), {}),
        "grey-alpha.png": (clear, {}),
        "palette.png": (palette, {}),
        "palette-one.png": (palette, {"transparency": 3}),
        "palette-each.png": (palette, {"transparency": bytes(range(0, 256, 4))}),
        "alpha.png": (see_through, {}),
        "inks.jpg": (colours.convert("CMYK"), {}),
        "bits.png": (colours.convert("1"), {}),
        "turned.jpg": (colours, {"exif": turned}),
    }
    for name, (image, options) in saved.items():
        image.save(folder / name, **options)
    found = {name: (folder / name, _loaded(folder / name)) for name in saved}
    deep = np.asarray(colours.convert("L")).astype(np.uint16) * 201 + 17
    Image.fromarray(deep).save(folder / "deep.png")
    scaled = Image.fromarray(np.rint(deep / 65535 * 255).astype(np.uint8)).convert("RGB")
    return {**found, "deep.png": (folder / "deep.png", scaled)}


def _loaded(path: Path) -> Image.Image:
    with Image.open(path) as image, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        loaded: Image.Image = image.convert("RGB")
    loaded.info.pop("transparency", None)  # Pillow keeps it, and CLIP's processor would put white behind it
    return loaded
