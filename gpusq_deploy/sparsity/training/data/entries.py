"""Images with what a label says of them, and the samples that a task's reader makes of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from gpusq_deploy.sparsity.training.samples import Batch

Pixels = npt.NDArray[np.float32]


class Entry(NamedTuple):
    """An image, or the model's input float32 [channels, height, width]; its target as the source has it, if any."""

    image: Path | Image.Image | Pixels
    target: Any


class Entries(Protocol):
    """Entries by index; one that can't be opened is a GpusqError that names its file."""

    @property
    def name(self) -> str:
        """Where they come from."""
        ...

    @property
    def labelled(self) -> bool:
        """Whether each has a target."""
        ...

    def __len__(self) -> int: ...

    def entry(self, index: int) -> Entry:
        """Entry `index`."""
        ...


class Read(NamedTuple):
    """The model's input float32 [channels, height, width], and the target of the task; None without labels."""

    pixels: Pixels
    target: Any


class Reader(Protocol):
    """From an entry to a sample."""

    def read(self, entry: Entry) -> Read:
        """As the model declares; always the same.

        Raises:
            GpusqError: The image or its target can't be read.
        """
        ...


class Augmenter(Protocol):
    """From an entry to a sample that differs from epoch to epoch."""

    def read(self, entry: Entry, seed: tuple[int, ...]) -> Read:
        """Decided by the seed alone. Raises as `Reader` does."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EntrySamples:
    """Some entries as samples: kept in memory [N, ...], read again each time, or augmented, then by `seed`."""

    entries: Entries
    indices: Sequence[int]
    reader: Reader
    kept: Sequence[Read] | None = None
    augmenter: Augmenter | None = None
    seed: int = 0

    @property
    def labelled(self) -> bool:
        """Whether there are targets."""
        return self.entries.labelled

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """The samples at these places of `self.indices`, in this order."""
        found = [self._read(index, epoch) for index in indices]
        images = torch.from_numpy(np.stack([read.pixels for read in found]))
        return Batch(images, [read.target for read in found] if self.labelled else None)

    def _read(self, index: int, epoch: int) -> Read:
        if self.augmenter is not None:
            place = self.indices[index]
            return self.augmenter.read(self.entries.entry(place), (self.seed, epoch, place))
        return self.reader.read(self.entries.entry(self.indices[index])) if self.kept is None else self.kept[index]
