"""Any map-style torch Dataset, from a function of the user's: `--data package.module:factory`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from gpusq_deploy.calibration import called
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.entries import Entry, Pixels
from gpusq_deploy.text import one_line

_WANTED = "items are (image, class), or an image alone; images are PIL's, or float [C, H, W] preprocessed"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetEntries:
    """Items of a Dataset."""

    name: str
    dataset: Any
    labelled: bool
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.dataset)

    def entry(self, index: int) -> Entry:
        """Item `index`.

        Raises:
            GpusqError: The Dataset fails, or the item is none.
        """
        place = f"{self.name}, item {index}"
        try:
            item: Any = self.dataset[index]
        except Exception as error:  # people's code
            raise GpusqError(f"the data set fails: {type(error).__name__}: {one_line(error)}", place=place) from error
        entry = _entry(item)
        if entry is None or (entry.target is not None) != self.labelled:
            raise GpusqError("the item isn't like a sample", place=place, hint=_WANTED)
        return entry


def open_factory(text: str) -> DatasetEntries:
    """Call a function that returns a Dataset: `len(…)` and items by number; its `classes` are their names, if any.

    Raises:
        GpusqError: No such function, it fails, or what it returns is no Dataset of images.
    """
    return called(text, lambda dataset: _opened(dataset, text))


def _opened(dataset: Any, text: str) -> DatasetEntries:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or not len(dataset):
        raise GpusqError(
            f"the function returns a {type(dataset).__name__}, which has no items by number",
            place=text,
            hint="return a map-style torch Dataset with one item or more",
        )
    first = _entry(dataset[0])
    if first is None:
        raise GpusqError(f"the first item is a {type(dataset[0]).__name__}", place=text, hint=_WANTED)
    names = cast("Sequence[str]", getattr(dataset, "classes", ()))
    labelled = first.target is not None
    return DatasetEntries(name=text, dataset=dataset, labelled=labelled, classes=tuple(names) if labelled else ())


def _entry(item: Any) -> Entry | None:
    pair = cast("Sequence[Any]", item) if isinstance(item, (tuple, list)) else (item, None)
    if len(pair) != 2:
        return None
    image = pair[0] if isinstance(pair[0], Image.Image) else _array(pair[0])
    try:
        target = None if pair[1] is None else operator.index(pair[1])
    except TypeError:
        return None
    return None if image is None else Entry(image, target)


def _array(value: Any) -> Pixels | None:
    """A preprocessed image, of an array or a tensor of floats; None of anything else."""
    found = cast("Any", value.detach().cpu().numpy()) if isinstance(value, torch.Tensor) else value
    if not isinstance(found, np.ndarray):
        return None
    array = cast("npt.NDArray[Any]", found)
    return array.astype(np.float32) if array.dtype.kind == "f" and array.ndim == 3 else None
