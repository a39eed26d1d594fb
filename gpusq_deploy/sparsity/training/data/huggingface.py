"""Data sets of the Hugging Face `datasets` library, as `save_to_disk` writes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import library
from gpusq_deploy.sparsity.training.data.entries import Entry
from gpusq_deploy.text import one_line

_MARKS = ("dataset_dict.json", "state.json")
_SPLITS = ("train", "training")


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrowRows:
    """Rows of a table; `label` is the name of the column of classes, if there is one."""

    name: str
    rows: Any
    image: str
    label: str | None
    classes: tuple[str, ...]

    @property
    def labelled(self) -> bool:
        """Whether there is a column of classes."""
        return self.label is not None

    def __len__(self) -> int:
        return len(self.rows)

    def entry(self, index: int) -> Entry:
        """Row `index`.

        Raises:
            GpusqError: Its image can't be decoded.
        """
        place = f"{self.name}, row {index}"
        try:
            row: dict[str, Any] = self.rows[index]
        except Exception as error:  # decoders raise what they like on damaged bytes
            raise GpusqError(f"not a readable image: {one_line(error)}", place=place) from error
        image = row[self.image]
        if not isinstance(image, Image.Image):
            raise GpusqError("the row has no image", place=place)
        return Entry(image, None if self.label is None else row[self.label])


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is what `save_to_disk` wrote."""
    return any((folder / mark).is_file() for mark in _MARKS)


def open_dataset(folder: Path) -> ArrowRows:
    """Read a saved data set; of several splits `train`.

    Raises:
        GpusqError: The library isn't installed, the data set is damaged, or has no column of images.
    """
    datasets = library("datasets", hint="pip install datasets")
    try:
        found: Any = datasets.load_from_disk(str(folder))
    except Exception as error:  # it raises what it likes on damaged files
        raise GpusqError(f"the data set can't be read: {one_line(error)}", place=str(folder)) from error
    name = str(folder)
    if isinstance(found, datasets.DatasetDict):
        split = next((split for split in _SPLITS if split in found), None)
        if split is None:
            raise GpusqError(
                f"none of the splits {', '.join(found)} is called train", place=name, hint="give one split's folder"
            )
        name, found = f"{name}, split {split}", found[split]
    return _of_table(found, name, datasets)


def _of_table(table: Any, name: str, datasets: Any) -> ArrowRows:
    features = cast("dict[str, Any]", table.features)
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(images) != 1 or len(labels) > 1:
        raise GpusqError(
            f"{len(images)} columns of images and {len(labels)} of classes: {', '.join(features)}",
            place=name,
            hint="keep one of each: dataset.select_columns([...]), and cast_column(..., datasets.Image())",
        )
    label = labels[0] if labels else None
    classes = tuple(features[label].names) if label is not None else ()
    return ArrowRows(name=name, rows=table, image=images[0], label=label, classes=classes)
