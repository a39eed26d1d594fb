"""Folders of images with a class each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def dark_and_light(root: Path) -> Path:
    """Two classes that differ by brightness, 12 images each."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (root / name).mkdir()
        for index in range(12):
            pixels = np.clip(rng.normal(level, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root
