"""What `--data` names, as samples of the model's task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpusq_deploy.artifacts import Preprocessing
from gpusq_deploy.calibration import names_factory
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.augment import MixedSamples, TimmAugmenter
from gpusq_deploy.sparsity.training.data.class_reader import ClassReader
from gpusq_deploy.sparsity.training.data.coco import BoxReader, open_coco
from gpusq_deploy.sparsity.training.data.entries import Entries, Reader
from gpusq_deploy.sparsity.training.data.factory import open_factory
from gpusq_deploy.sparsity.training.data.folder import ClassFolder, flat_folder, open_folder
from gpusq_deploy.sparsity.training.data.huggingface import is_saved_dataset, open_dataset
from gpusq_deploy.sparsity.training.data.label_maps import MapReader, has_maps, open_maps
from gpusq_deploy.sparsity.training.data.shards import names_shards, open_shards
from gpusq_deploy.sparsity.training.data.split import SplitOptions, split_entries
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.tasks.task import Measure
from gpusq_deploy.text import counted, some


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRequest:
    """`data`: a folder of images, of a saved Hugging Face data set or of shards; shards; or `package.module:factory`.

    `annotations` is COCO's file, of a detector. `reduce_labels`: in label maps 0 is no class and 1 the first.
    `augment`, `mixup` and `cutmix` are for classes; see `TimmAugmenter` and `MixedSamples`.
    """

    data: str
    split: SplitOptions
    annotations: Path | None = None
    reduce_labels: bool = False
    augment: bool = False
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True, slots=True)
class Labels:
    """So many classes the model's answer has, and their names where its config has them."""

    count: int
    names: Mapping[int, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedData:
    """All entries, and the names of their classes where they are told."""

    entries: Entries
    classes: tuple[str, ...] = ()


def load_data(request: DataRequest, preprocessing: Preprocessing, measure: Measure, labels: Labels) -> TrainingData:
    """Read and split training data.

    Args:
        request: What is asked for.
        preprocessing: From an image to the model's input.
        measure: Of the model's task.
        labels: The model's.

    Raises:
        GpusqError: No such data, damaged data, data of another task, or labels beyond the model's.
    """
    opened = open_data(request, measure, labels)
    if measure == "accuracy":
        return _classes(request, preprocessing, labels, opened)
    return split_entries(opened.entries, reader_of(request, preprocessing, measure, labels), request.split)


def open_data(request: DataRequest, measure: Measure, labels: Labels) -> OpenedData:
    """List what `--data` names; no image is read.

    Raises:
        GpusqError: No such data, data of another task, or more classes than the model's.
    """
    _require_task(request, measure)
    folder = Path(request.data)
    if measure == "mAP":
        file = request.annotations
        boxes = flat_folder(folder) if file is None else open_coco(file, folder, labels.names, labels.count)
        return OpenedData(entries=boxes)
    if measure == "mIoU":
        return OpenedData(entries=open_maps(folder) if has_maps(folder) else flat_folder(folder))
    entries, classes = _opened(request.data)
    if len(classes) > labels.count:
        raise GpusqError(
            f"the data has {len(classes)} classes, the model has only {labels.count}",
            place=request.data,
            hint="one class of the data for each of the model's; training takes data without labels too",
        )
    return OpenedData(entries=entries, classes=classes)


def reader_of(request: DataRequest, preprocessing: Preprocessing, measure: Measure, labels: Labels) -> Reader:
    """From an entry to a sample of the task, as the model declares."""
    if measure == "mAP":
        return BoxReader(preprocessing)
    if measure == "mIoU":
        return MapReader(preprocessing, labels.count, request.reduce_labels)
    return ClassReader(preprocessing)


def _classes(request: DataRequest, preprocessing: Preprocessing, labels: Labels, opened: OpenedData) -> TrainingData:
    entries, classes = opened.entries, opened.classes
    data = split_entries(
        entries,
        ClassReader(preprocessing),
        request.split,
        classes=classes,
        labels=labels.count,
        augmenter=TimmAugmenter(preprocessing) if request.augment else None,
    )
    data = replace(data, remarks=_remarks(entries, classes))
    if not (request.mixup or request.cutmix):
        return data
    if not entries.labelled:
        raise GpusqError("mixing needs labels", place="--mixup", hint="leave it out, or give one folder per class")
    mixed = MixedSamples(
        samples=data.train, classes=labels.count, mixup=request.mixup, cutmix=request.cutmix, seed=request.split.seed
    )
    return replace(data, train=mixed, plain=data.declared)


def _remarks(entries: Entries, classes: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(entries, ClassFolder):
        return ()
    seen = set(entries.labels)
    empty = [name for label, name in enumerate(classes) if label not in seen]
    return (f"no images of {counted(len(empty), 'class')}: {some(empty)}",) if empty else ()


def _opened(text: str) -> tuple[Entries, tuple[str, ...]]:
    """Entries with classes, and the classes' names where they are told."""
    if names_shards(text):
        return open_shards(text), ()
    path = Path(text)
    if is_saved_dataset(path):
        rows = open_dataset(path)
        return rows, rows.classes
    if not path.exists() and names_factory(text):
        items = open_factory(text)
        return items, items.classes
    folder = open_folder(path)
    return folder, folder.classes


def _require_task(request: DataRequest, measure: Measure) -> None:
    if request.annotations is not None and measure != "mAP":
        raise GpusqError("the model answers no boxes", place="--annotations", hint="leave it out")
    if request.reduce_labels and measure != "mIoU":
        raise GpusqError("the model answers no label maps", place="--reduce-labels", hint="leave it out")
    if measure != "accuracy" and (request.augment or request.mixup or request.cutmix):
        raise GpusqError("augmentation and mixing are for classes", place="--augment", hint="leave it out")
