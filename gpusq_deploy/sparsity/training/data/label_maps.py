"""Images and label maps of a folder, as ADE20K and Cityscapes lie, and the samples of a segmentation model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.calibration import image_files, load_image, sample_from_image
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.entries import Entry, Read
from gpusq_deploy.sparsity.training.tasks.segmentation import IGNORED
from gpusq_deploy.text import one_line

_IMAGES = "images"
_MAPS = ("annotations", "labels", "masks")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapped:
    """Images and the label map of each, a grey or palette image of the same size."""

    name: str
    images: tuple[Path, ...]
    maps: tuple[Path, ...]
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.images)

    def entry(self, index: int) -> Entry:
        """Image `index`, and its label map's file."""
        return Entry(self.images[index], self.maps[index])


def has_maps(folder: Path) -> bool:
    """Whether label maps lie in a folder; see `open_maps`."""
    return (folder / _IMAGES).is_dir() and any((folder / name).is_dir() for name in _MAPS)


def open_maps(folder: Path) -> Mapped:
    """List `images/**`, and PNGs of the same names in `annotations/` (or `labels/`, `masks/`), where `has_maps`.

    Raises:
        GpusqError: No images, or an image without a label map.
    """
    root = next(folder / name for name in _MAPS if (folder / name).is_dir())
    images = tuple(image_files(folder / _IMAGES))
    maps = tuple(root / image.relative_to(folder / _IMAGES).with_suffix(".png") for image in images)
    missing = [map_ for map_ in maps if not map_.is_file()]
    if missing or not images:
        raise GpusqError(
            f"{len(missing)} of {len(images)} images have no label map" if missing else "no images in the folder",
            place=str(missing[0] if missing else folder / _IMAGES),
        )
    return Mapped(name=str(folder), images=images, maps=maps)


@dataclass(frozen=True, slots=True)
class MapReader:
    """Resizes and crops an image and its label map as calibration does the image.

    `classes`: so many the model has. `reduced`: the map's 0 is no class and 1 is the first, as in ADE20K's files.
    """

    preprocessing: Preprocessing
    classes: int
    reduced: bool = False

    def read(self, entry: Entry) -> Read:
        """The target is a label map int64 [height, width], 255 where nothing counts; see `Reader`."""
        assert isinstance(entry.image, Path), "maps are of files"
        labels = None if entry.target is None else self._labels(entry.target)
        return Read(load_image(entry.image, self.preprocessing), labels)

    def _labels(self, path: Path) -> torch.Tensor:
        try:
            with Image.open(path) as image:
                drawn = np.asarray(image)
        except Exception as error:  # Pillow's decoders raise what they like on a damaged file
            raise GpusqError(f"not a readable label map: {one_line(error)}", place=str(path)) from error
        if drawn.ndim != 2 or drawn.dtype != np.uint8:
            raise GpusqError(
                f"a label map has one byte for each pixel, this has {list(drawn.shape)} {drawn.dtype}",
                place=str(path),
                hint="save it as a grey or palette PNG",
            )
        found = np.rint(sample_from_image(Image.fromarray(drawn), self._nearest())[0]).astype(np.int64)
        labels = np.where((found == 0) | (found == IGNORED), IGNORED, found - 1) if self.reduced else found
        highest = int(labels[labels != IGNORED].max(initial=0))
        if highest >= self.classes:
            raise GpusqError(
                f"label {highest} is none of the model's, 0 to {self.classes - 1}",
                place=str(path),
                hint="where 0 is no class, give --reduce-labels; else number them as the model does, 255 for none",
            )
        return torch.from_numpy(labels)

    def _nearest(self) -> Preprocessing:
        """The image's frame, for integers: neither mixed nor scaled."""
        return msgspec.structs.replace(
            self.preprocessing, channels=1, mean=(0.0,), std=(1 / 255,), interpolation="nearest"
        )
