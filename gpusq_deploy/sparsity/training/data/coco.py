"""Images and boxes of a COCO annotation file, and the samples of a detector."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.calibration import fit_image
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.entries import Entry, Pixels, Read
from gpusq_deploy.text import one_line


class _Image(msgspec.Struct):
    id: int
    file_name: str
    width: int
    height: int


class _Box(msgspec.Struct):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


class _Category(msgspec.Struct):
    id: int
    name: str


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Box]
    categories: list[_Category]


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotated:
    """Images of a folder with their boxes: x, y of the corner, width, height in pixels of [height, width]."""

    name: str
    folder: Path
    images: tuple[_Image, ...]
    boxes: Mapping[int, tuple[_Box, ...]]
    labels: Mapping[int, int]
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.images)

    def entry(self, index: int) -> Entry:
        """Image `index`; its target: `class_labels` [M], `boxes` [M, 4] as the file has them, `crowd` [M], `size`."""
        image = self.images[index]
        found = self.boxes.get(image.id, ())
        target = {
            "class_labels": torch.tensor([self.labels[box.category_id] for box in found], dtype=torch.int64),
            "boxes": torch.tensor([box.bbox for box in found], dtype=torch.float32).reshape(-1, 4),
            "crowd": torch.tensor([bool(box.iscrowd) for box in found], dtype=torch.bool),
            "size": (image.height, image.width),
        }
        return Entry(self.folder / image.file_name, target)


def open_coco(annotations: Path, folder: Path, names: Mapping[int, str], labels: int) -> Annotated:
    """Read an annotation file.

    A category is the model's label of its name; where the model names none of them, its id is the label.

    Args:
        annotations: COCO's JSON: `images`, `annotations`, `categories`.
        folder: What its `file_name`s are relative to.
        names: Of the model's labels, by label.
        labels: So many the model has.

    Raises:
        GpusqError: No such file, not such a file, no image in it, or a category that is none of the model's labels.
    """
    place = str(annotations)
    try:
        found = msgspec.json.decode(annotations.read_bytes(), type=_File, strict=False)
    except OSError as error:
        raise GpusqError(f"the annotations can't be read: {error.strerror}", place=place) from error
    except msgspec.MsgspecError as error:
        raise GpusqError(
            f"not COCO annotations: {one_line(error)}", place=place, hint="give a file such as instances_train2017.json"
        ) from error
    boxes = defaultdict[int, list[_Box]](list)
    for box in found.annotations:
        if min(box.bbox[2:]) > 0:
            boxes[box.image_id].append(box)
    if not found.images:
        raise GpusqError("no images in the file", place=place)
    return Annotated(
        name=place,
        folder=folder,
        images=tuple(found.images),
        boxes={image: tuple(each) for image, each in boxes.items()},
        labels=_labels(found.categories, names, labels, place),
    )


def _labels(categories: list[_Category], names: Mapping[int, str], count: int, place: str) -> dict[int, int]:
    of_name = {name.lower(): label for label, name in names.items()}
    named = {category.id: of_name.get(category.name.lower()) for category in categories}
    if any(label is not None for label in named.values()):
        unknown = [category.name for category in categories if named[category.id] is None]
        if unknown:
            raise GpusqError(
                f"the model has no label called {unknown[0]!r} ({len(unknown)} of {len(categories)} categories)",
                place=place,
                hint="name the categories as the model's config does",
            )
        return {category: label for category, label in named.items() if label is not None}
    beyond = [category for category in categories if not 0 <= category.id < count]
    if beyond:
        raise GpusqError(
            f"category {beyond[0].id} ({beyond[0].name}) is none of the model's labels, 0 to {count - 1}",
            place=place,
            hint="number the categories as the model's labels are, or name them as its config does",
        )
    return {category.id: category.id for category in categories}


@dataclass(frozen=True, slots=True)
class BoxReader:
    """Scales an image to fit the input, fills the rest with the mean at the right and below, and boxes alike."""

    preprocessing: Preprocessing

    def read(self, entry: Entry) -> Read:
        """The target's `boxes` become centre x and y, width and height, 0…1 of the input; see `Reader`."""
        assert isinstance(entry.image, (Path, Image.Image)), "boxes are of images"
        fitted = fit_image(entry.image, self.preprocessing)
        pixels = np.zeros(self.preprocessing.sample_shape, np.float32)
        _, height, width = fitted.sample.shape
        pixels[:, :height, :width] = fitted.sample
        if entry.target is None:
            return Read(pixels, None)
        _require_size(entry.target, fitted.original, entry.image)
        return Read(pixels, _scaled(entry.target, fitted.original, fitted.sample, pixels))


def _require_size(target: Mapping[str, Any], size: tuple[int, int], image: Path | Image.Image) -> None:
    if tuple(target["size"]) != size:
        raise GpusqError(
            f"the image is {size[1]} x {size[0]}, its annotation says {target['size'][1]} x {target['size'][0]}",
            place=str(image),
            hint="boxes are in pixels of the annotated size: give the images that were annotated",
        )


def _scaled(target: Mapping[str, Any], size: tuple[int, int], fitted: Pixels, whole: Pixels) -> dict[str, Any]:
    share = [fitted.shape[axis] / (whole.shape[axis] * size[axis - 1]) for axis in (2, 1)]
    corner, sides = target["boxes"][:, :2], target["boxes"][:, 2:]
    scale = torch.tensor(share, dtype=torch.float32)
    boxes = torch.cat([(corner + sides / 2) * scale, sides * scale], dim=1)
    return {"class_labels": target["class_labels"], "boxes": boxes, "crowd": target["crowd"]}
