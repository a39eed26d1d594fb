"""Samples of a classifier: an image as the model declares, and its class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.calibration import load_image, sample_from_image
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.entries import Entry, Pixels, Read


@dataclass(frozen=True, slots=True)
class ClassReader:
    """Resizes and crops as calibration and evaluation do."""

    preprocessing: Preprocessing

    def read(self, entry: Entry) -> Read:
        """See `Reader`."""
        return Read(pixels_of(entry, self.preprocessing), entry.target)


def pixels_of(entry: Entry, preprocessing: Preprocessing) -> Pixels:
    """The model's input float32 [channels, height, width].

    Raises:
        GpusqError: An image can't be read, or an array is no input of the model.
    """
    image = entry.image
    if isinstance(image, Path):
        return load_image(image, preprocessing)
    if isinstance(image, Image.Image):
        return sample_from_image(image, preprocessing)
    if image.shape != preprocessing.sample_shape or not np.isfinite(image).all():
        raise GpusqError(
            f"a sample is float {list(image.shape)}, the model takes finite float {list(preprocessing.sample_shape)}",
            hint="give images, or arrays that are preprocessed as the model declares",
        )
    return image
