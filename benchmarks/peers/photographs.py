"""The photographs that scikit-image and scikit-learn bundle, and crops of them; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.calibration import sample_from_image

_SMALLEST = 300


def photographs(left_out: tuple[str, ...], *, modes: tuple[str, ...] | None = None) -> list[Path]:
    """Files of at least 300 px in alphabetical order, but for those left out; of these modes of PIL, or of any."""
    import skimage  # late: a process that only crops or quantises needs neither
    import sklearn

    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    files = [path for folder in folders for path in folder.iterdir() if path.suffix in {".png", ".jpg"}]
    return sorted((path for path in files if path.name not in left_out and _fits(path, modes)), key=lambda p: p.name)


def crops(
    files: list[Path], preprocessing: Preprocessing, count: int, *, least: float, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Seeded square crops of `least` to 1 of the shorter side, from the files in turn: float32 [count, C, H, W]."""
    random = np.random.default_rng(seed)
    samples: list[npt.NDArray[np.float32]] = []
    for index in range(count):
        with Image.open(files[index % len(files)]) as image:
            side = int(min(image.size) * random.uniform(least, 1.0))
            left = int(random.integers(0, image.width - side + 1))
            top = int(random.integers(0, image.height - side + 1))
            part = image.convert("RGB").crop((left, top, left + side, top + side))
        samples.append(sample_from_image(part, preprocessing))
    return np.stack(samples)


def _fits(path: Path, modes: tuple[str, ...] | None) -> bool:
    with Image.open(path) as image:
        return (modes is None or image.mode in modes) and min(image.size) >= _SMALLEST
