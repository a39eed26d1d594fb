"""Photographs to fit on, and crops of others to judge features on, whose label is the photograph that they are of."""

from __future__ import annotations

import shutil
from importlib import util
from pathlib import Path

import numpy as np
from PIL import Image

from gpusq_deploy.benchmarks.peers.photographs import photographs

_DRAWINGS = ("color.png", "phantom.png", "motorcycle_right.png")
_LEAST = 0.4


def write_fitted(folder: Path, found: Path, count: int) -> None:
    """`count` of the images that debian_photographs.py found, spread evenly."""
    files = sorted(found.iterdir())
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        file = files[index * len(files) // count]
        shutil.copy(file, folder / file.name)


def judged_files() -> list[Path]:
    """Colour photographs of scikit-image and scikit-learn, and the 20 of ImageNet that foolbox ships.

    Raises:
        SystemExit: foolbox isn't installed.
    """
    spec = util.find_spec("foolbox")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("foolbox isn't installed, which ships photographs of ImageNet")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return [*photographs(_DRAWINGS, modes=("RGB",)), *sorted(folder.glob("imagenet_*.jpg"))]


def write_judged(folder: Path, each: int) -> int:
    """A sub-folder per photograph with `each` seeded square crops of 0.4 to 1 of its shorter side; how many in all."""
    rng = np.random.default_rng(0)
    files = judged_files()
    for file in files:
        (folder / file.stem).mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            colours = image.convert("RGB")
        for index in range(each):
            side = int(min(colours.size) * rng.uniform(_LEAST, 1.0))
            left, top = (int(rng.integers(0, length - side + 1)) for length in colours.size)
            colours.crop((left, top, left + side, top + side)).save(folder / file.stem / f"{index}.png")
    return each * len(files)
