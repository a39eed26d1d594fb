"""Real photographs for tests: crops of the images that scikit-image and scikit-learn bundle."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image

CALIBRATION = ("astronaut", "coffee", "rocket", "china.jpg")
UNSEEN = ("chelsea", "immunohistochemistry", "hubble_deep_field", "flower.jpg")


def write_photographs(folder: Path, names: tuple[str, ...], *, crops: int = 4) -> Path:
    """Write `crops` seeded square crops of each image as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        image = Image.fromarray(_pixels(name)).convert("RGB")
        random = np.random.default_rng(len(name))
        for index in range(crops):
            side = int(min(image.size) * random.uniform(0.6, 1.0))
            left = int(random.integers(0, image.width - side + 1))
            top = int(random.integers(0, image.height - side + 1))
            crop = image.crop((left, top, left + side, top + side))
            crop.save(folder / f"{Path(name).stem}-{index}.png")
    return folder


def _pixels(name: str) -> npt.NDArray[np.uint8]:
    datasets: Any = importlib.import_module("sklearn.datasets")  # it ships no types
    pixels: Any = datasets.load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
    return np.asarray(pixels, dtype=np.uint8)
