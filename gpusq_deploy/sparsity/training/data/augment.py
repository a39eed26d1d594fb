"""What is done to training images: timm's augmentation, Mixup and CutMix."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import library
from gpusq_deploy.sparsity.training.data.entries import Entry, Read
from gpusq_deploy.sparsity.training.samples import Batch, Samples

_INSTALL = "pip install 'gpusq-deploy[timm]'"
# RandAugment as timm's recipes for vision transformers have it.
_AUTO = "rand-m9-mstd0.5-inc1"


@dataclass(frozen=True)
class TimmAugmenter:
    """Random crops, flips and RandAugment, by `timm.data.create_transform`, for classes.

    Raises:
        GpusqError: timm isn't installed, or the model takes no colour images.
    """

    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        if self.preprocessing.channels != 3:
            raise GpusqError(
                f"augmentation is for colour images, the model takes {self.preprocessing.channels} channels",
                place="--augment",
                hint="leave it out",
            )
        self._transform  # noqa: B018 - found out now whether timm is there

    @cached_property
    def _transform(self) -> Any:
        declared = self.preprocessing
        return library("timm.data", hint=_INSTALL, place="--augment").create_transform(
            input_size=declared.sample_shape,
            is_training=True,
            auto_augment=_AUTO,
            interpolation=declared.interpolation,
            mean=declared.mean,
            std=declared.std,
        )

    def read(self, entry: Entry, seed: tuple[int, ...]) -> Read:
        """See `Augmenter`."""
        with seeded(seed):
            pixels: torch.Tensor = self._transform(_picture(entry.image))
        return Read(np.asarray(pixels, dtype=np.float32), entry.target)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedSamples:
    """Batches mixed by timm's Mixup and CutMix; a target is the share of each class, float32 [classes].

    Of an odd number the last isn't mixed. `mixup` and `cutmix` are the alphas of their beta distributions, 0 for none.
    """

    samples: Samples
    classes: int
    mixup: float
    cutmix: float
    seed: int
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Sequence[int], epoch: int = 0) -> Batch:
        """See `Samples`."""
        images, targets = self.samples.batch(indices, epoch)
        assert targets is not None, "what isn't labelled isn't mixed"
        even, labels = len(images) // 2 * 2, torch.tensor(targets)
        shares = torch.nn.functional.one_hot(labels, self.classes).float()
        if even:
            mixer: Any = library("timm.data", hint=_INSTALL, place="--mixup").Mixup(
                mixup_alpha=self.mixup, cutmix_alpha=self.cutmix, label_smoothing=0, num_classes=self.classes
            )
            with seeded((self.seed, epoch, *indices)):
                mixed, shares_of_mixed = mixer(images[:even], labels[:even])
            images, shares = torch.cat([mixed, images[even:]]), torch.cat([shares_of_mixed, shares[even:]])
        return Batch(images, list(shares))


@contextmanager
def seeded(seed: tuple[int, ...]) -> Generator[None]:
    """The three global generators that augmentations draw from, seeded while the block lasts, and put back."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - timm draws from it
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    with torch.random.fork_rng(devices=[]):
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 - timm draws from it
        torch.manual_seed(number)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002 - timm draws from it


def _picture(image: Any) -> Image.Image:
    if isinstance(image, Path):
        with Image.open(image) as opened:
            found: Image.Image = opened.convert("RGB")
            return found
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    raise GpusqError(
        "augmentation is for images, and the data are arrays", place="--augment", hint="give images, or leave it out"
    )
