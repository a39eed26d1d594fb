"""Which image files lie below a folder."""

from __future__ import annotations

import functools
import importlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import counted, some

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# Formats that Pillow reads only in some versions, or with a package of its own; and that package's module.
_PACKAGES = {
    ".avif": ("pillow-avif-plugin", "pillow_avif"),
    ".heic": ("pillow-heif", "pillow_heif"),
    ".heif": ("pillow-heif", "pillow_heif"),
    ".jxl": ("pillow-jxl-plugin", "pillow_jxl"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Files below a folder: images by path, and how many others there are by suffix.

    `undecodable` are images of a format without a decoder here.
    """

    images: tuple[Path, ...]
    undecodable: Mapping[str, int]
    others: Mapping[str, int]

    @property
    def lacking(self) -> str:
        """One sentence on the images without a decoder, and the package that has it; empty where there are none."""
        if not self.undecodable:
            return ""
        packages = sorted({_PACKAGES[suffix][0] for suffix in self.undecodable})
        found = counted(sum(self.undecodable.values()), "image")
        return f"{found} ({some(sorted(self.undecodable))}) can't be decoded here: pip install {' '.join(packages)}"


def image_files(folder: Path) -> tuple[Path, ...]:
    """Image files below `folder`; see `listed`."""
    return listed(folder).images


def listed(folder: Path) -> Listing:
    """What lies below `folder`, at any depth, sorted by path so that every machine sees one order.

    Links to folders are followed, each folder once. Hidden files and folders are passed over: macOS, for one, lays a
    `._photo.jpg` beside a `photo.jpg`.

    Raises:
        GpusqError: A folder can't be listed.
    """
    images: list[Path] = []
    undecodable, others = Counter[str](), Counter[str]()
    for entry in _files(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in SUFFIXES or (suffix in _PACKAGES and _has_decoder(suffix)):
            images.append(Path(entry.path))
        else:
            (undecodable if suffix in _PACKAGES else others)[suffix] += 1
    return Listing(images=tuple(sorted(images)), undecodable=undecodable, others=others)


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Regular files, and links to nothing, which are told when they are read."""
    folders, seen = [os.fspath(folder)], set[tuple[int, int]]()
    while folders:
        place = folders.pop()
        try:
            state = os.stat(place)
            if (state.st_dev, state.st_ino) in seen:
                continue
            seen.add((state.st_dev, state.st_ino))
            with os.scandir(place) as scan:
                entries = sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            raise GpusqError(
                f"cannot list the folder: {error.strerror}", place=place, hint="check its permissions"
            ) from error
        # Links come last, so that what is reached by a link too keeps its own path.
        folders = [*_links(entries), *folders, *_folders(entries)]
        yield from (entry for entry in entries if entry.is_file() or _is_dangling(entry))


def _folders(entries: list[os.DirEntry[str]]) -> list[str]:
    return [entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]


def _links(entries: list[os.DirEntry[str]]) -> list[str]:
    return [entry.path for entry in reversed(entries) if entry.is_symlink() and entry.is_dir()]


def _is_dangling(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


@functools.cache
def _has_decoder(suffix: str) -> bool:
    """Whether Pillow reads the format, by itself or with its package, if that is installed."""
    Image.init()
    if suffix in Image.registered_extensions():
        return True
    try:
        module = importlib.import_module(_PACKAGES[suffix][1])
    except ImportError:
        return False
    register = getattr(module, "register_heif_opener", None)
    if register is not None:
        register()
    return suffix in Image.registered_extensions()
