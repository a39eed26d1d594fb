"""Training images: a folder with one sub-folder per class, or a flat one without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.calibration import SUFFIXES, Batches, ImageFolder, Sample, image_files
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.samples import Batch, TrainingData

_KEEP_BELOW = 2 << 30  # bytes of float32 samples that are kept in memory
_CHECK_BATCH = 64
_PER_VALIDATION = 10  # of so many samples that aren't held out, one

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderSamples:
    """Images by index, kept in memory or read again each time, and their labels [N], if any; none is augmented."""

    source: ImageFolder
    labels: Labels | None
    kept: torch.Tensor | None

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """The samples at these indices, in this order."""
        del epoch
        chosen = list(indices)
        if self.kept is not None:
            images = self.kept[chosen]
        else:
            images = torch.from_numpy(np.stack([self.source.sample(index) for index in chosen]))
        return Batch(images, None if self.labels is None else [int(label) for label in self.labels[chosen]])


def load_folder(
    folder: Path, preprocessing: Preprocessing, *, held_out: float, seed: int, keep_below: int = _KEEP_BELOW
) -> TrainingData:
    """Read a folder of images as the model declares, and split it.

    Two or more sub-folders are classes: label i is the i-th of their sorted names. One sub-folder or none: there are
    no labels. Unreadable images are skipped and named, and too many of them are an error, as in calibration.

    Args:
        folder: The images, at any depth.
        preprocessing: From file to model input.
        held_out: Share kept out of training, 0…1; at least one sample lands on either side.
        seed: Decides the split, together with the sorted paths.
        keep_below: Keep all samples in memory as float32 where they need fewer bytes than this.

    Raises:
        GpusqError: No such folder, fewer than two images, images beside class folders, or too many unreadable.
    """
    classes, files = _files_by_class(folder)
    if len(files) < 2:
        raise GpusqError(
            f"{len(files) or 'no'} images in the folder: training and holding out need two",
            place=str(folder),
            hint=f"files with {', '.join(sorted(SUFFIXES))}, one sub-folder per class, or flat without labels",
        )
    source = ImageFolder(name=str(folder), files=tuple(files), preprocessing=preprocessing)
    size = 4 * math.prod(preprocessing.sample_shape) * len(files)
    readable, kept, skipped = _read(source, keep=size < keep_below)
    every = FolderSamples(
        source=ImageFolder(name=source.name, files=tuple(files[i] for i in readable), preprocessing=preprocessing),
        labels=np.asarray([classes.index(files[i].relative_to(folder).parts[0]) for i in readable], dtype=np.int64)
        if classes
        else None,
        kept=kept,
    )
    held, left = _split(len(readable), held_out, seed)
    chosen = len(left) // _PER_VALIDATION
    order = [left[int(index)] for index in np.random.default_rng((seed, 1)).permutation(len(left))]
    validation, trained = sorted(order[:chosen] or left), sorted(order[chosen:])
    return TrainingData(
        train=_selected(every, trained),
        validation=_selected(every, validation),
        held_out=_selected(every, held),
        classes=classes,
        skipped=tuple(skipped),
    )


def _files_by_class(folder: Path) -> tuple[tuple[str, ...], list[Path]]:
    if not folder.is_dir():
        problem = "not a folder" if folder.exists() else "no such folder"
        raise GpusqError(problem, place=str(folder), hint="--data takes a folder of images, one sub-folder per class")
    files = list(image_files(folder))
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(classes) < 2:
        return (), files
    loose = [path for path in files if path.parent == folder]
    if loose and len(loose) < len(files):
        raise GpusqError(
            f"{len(loose)} images lie beside the class folders, the first {loose[0].name}: their class is unknown",
            place=str(folder),
            hint="move them into a class folder, or make the folder flat to train without labels",
        )
    return () if loose else classes, files


@dataclass(kw_only=True, slots=True)
class _Recorded:
    """Samples of a source, and which of them could be read: `Batches` decides how many may fail."""

    whole: ImageFolder
    readable: list[int] = field(default_factory=list[int])
    synthetic: bool = False

    @property
    def name(self) -> str:
        return self.whole.name

    def __len__(self) -> int:
        return len(self.whole)

    def sample(self, index: int) -> Sample:
        sample = self.whole.sample(index)
        self.readable.append(index)
        return sample


def _read(source: ImageFolder, *, keep: bool) -> tuple[list[int], torch.Tensor | None, list[str]]:
    recorded = _Recorded(whole=source)
    batches = Batches(source=recorded, size=_CHECK_BATCH)
    # Every image is read once, also where none is kept, so that a damaged one is found before training.
    held = [batch for batch in batches if keep]
    kept = torch.from_numpy(np.concatenate(held)) if keep else None
    return recorded.readable, kept, batches.skipped


def _split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    if count < 2:
        raise GpusqError("only one image can be read: training and holding out need two", place="--data")
    held = min(max(1, round(share * count)), count - 1)
    order = [int(index) for index in np.random.default_rng(seed).permutation(count)]
    return sorted(order[:held]), sorted(order[held:])


def _selected(samples: FolderSamples, indices: list[int]) -> FolderSamples:
    whole = samples.source
    files = tuple(whole.files[index] for index in indices)
    return FolderSamples(
        source=ImageFolder(name=whole.name, files=files, preprocessing=whole.preprocessing),
        labels=None if samples.labels is None else samples.labels[indices],
        kept=None if samples.kept is None else samples.kept[indices],
    )
