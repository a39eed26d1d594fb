"""A folder of images: one sub-folder per class, or flat and without labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpusq_deploy.calibration import SUFFIXES, image_files
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.entries import Entry


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFolder:
    """Files, and the class of each as its place in `classes`; without classes there are no labels."""

    name: str
    classes: tuple[str, ...]
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    @property
    def labelled(self) -> bool:
        """Whether there are classes."""
        return bool(self.classes)

    def __len__(self) -> int:
        return len(self.files)

    def entry(self, index: int) -> Entry:
        """File `index`."""
        return Entry(self.files[index], self.labels[index] if self.classes else None)


def open_folder(folder: Path) -> ClassFolder:
    """List the images below a folder.

    Two or more sub-folders are classes: label i is the i-th of their sorted names. One sub-folder or none: there are
    no labels.

    Raises:
        GpusqError: No such folder, no images, or images beside class folders.
    """
    classes, files = _files_by_class(folder)
    _require_some(folder, len(files))
    place = {name: index for index, name in enumerate(classes)}
    return ClassFolder(
        name=str(folder),
        classes=classes,
        files=tuple(files),
        labels=tuple(place[file.relative_to(folder).parts[0]] for file in files) if classes else (),
    )


def flat_folder(folder: Path) -> ClassFolder:
    """All images below a folder, whatever the names of its sub-folders, without labels.

    Raises:
        GpusqError: No such folder, or no images.
    """
    _require_folder(folder)
    files = tuple(image_files(folder))
    _require_some(folder, len(files))
    return ClassFolder(name=str(folder), classes=(), files=files, labels=())


def _files_by_class(folder: Path) -> tuple[tuple[str, ...], list[Path]]:
    _require_folder(folder)
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


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        problem = "not a folder" if folder.exists() else "no such folder"
        raise GpusqError(problem, place=str(folder), hint="--data takes a folder of images, one sub-folder per class")


def _require_some(folder: Path, count: int) -> None:
    if not count:
        raise GpusqError(
            "no images in the folder",
            place=str(folder),
            hint=f"files with {', '.join(sorted(SUFFIXES))}, one sub-folder per class, or flat without labels",
        )
