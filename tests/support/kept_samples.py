"""Training samples that lie in memory alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.sparsity.training.data.class_reader import ClassReader
from gpusq_deploy.sparsity.training.data.entries import Entry, EntrySamples, Read


@dataclass
class _Nowhere:
    count: int
    labelled: bool
    name: str = "points"

    def __len__(self) -> int:
        return self.count

    def entry(self, index: int) -> Entry:
        raise NotImplementedError(index)


def kept_samples(
    images: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    preprocessing: Preprocessing,
    *,
    labelled: bool = True,
) -> EntrySamples:
    """Inputs [N, channels, height, width] with their classes [N]."""
    return EntrySamples(
        entries=_Nowhere(count=len(images), labelled=labelled),
        indices=range(len(images)),
        reader=ClassReader(preprocessing),
        kept=[Read(pixels, int(label)) for pixels, label in zip(images, labels, strict=True)],
    )
