"""Which files below a folder are images: what is followed, passed over, counted and refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.calibration import image_listing
from gpusq_deploy.calibration.data import open_source, remarks
from gpusq_deploy.calibration.image_data import load_image
from gpusq_deploy.calibration.image_listing import SUFFIXES, image_files, listed
from gpusq_deploy.errors import GpusqError

SIZE = Preprocessing(channels=3, height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3, origin="test")


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in image_files(folder)]


def test_files_are_found_at_any_depth_in_one_order_whatever_the_disk_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched(tmp_path, "b/2.png", "b/10.PNG", "a/z.jpeg", "a/deep/er/x.webp", "c.tiff", "notes.txt", "a/.hidden")
    (tmp_path / "folder.png").mkdir()
    expected = ["a/deep/er/x.webp", "a/z.jpeg", "b/10.PNG", "b/2.png", "c.tiff"]
    assert found(tmp_path) == expected
    really = os.scandir

    class Backwards:
        def __init__(self, place: Any) -> None:
            self.entries = list(really(place))

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(reversed(self.entries))

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert found(tmp_path) == expected
    assert {Path(name).suffix.lower() for name in expected} <= SUFFIXES


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touched(tmp_path, "photo.jpg", "._photo.jpg", ".thumbnails/small.jpg")
    assert found(tmp_path) == ["photo.jpg"]


def test_links_to_folders_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    touched(tmp_path / "elsewhere", "x.png")
    folder = touched(tmp_path / "photos", "class/a.png")
    (folder / "again").symlink_to(folder)
    (folder / "also").symlink_to(folder / "class")
    (folder / "class" / "up").symlink_to("..")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert found(folder) == ["class/a.png", "linked/x.png"]


def test_a_link_to_nothing_is_listed_and_told_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (path,) = image_files(tmp_path)
    with pytest.raises(GpusqError, match="No such file") as caught:
        load_image(path, SIZE)
    assert caught.value.place == str(path)


def test_what_would_block_a_reader_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert found(tmp_path) == []


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = touched(tmp_path, "locked/a.png") / "locked"
    really = os.scandir

    def scan(place: str) -> Any:
        if place == str(locked):
            raise PermissionError(13, "Permission denied")
        return really(place)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(GpusqError, match="cannot list the folder: Permission denied") as caught:
        listed(tmp_path)
    assert caught.value.place == str(locked)


def test_a_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    touched(tmp_path, "a.parquet", "b.parquet", "README")
    with pytest.raises(GpusqError, match=r"no images in the folder, but 3 other files \(.parquet, no suffix\)"):
        open_source(str(tmp_path), SIZE)


def test_images_without_a_decoder_name_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_suffix: str) -> bool:
        return False

    monkeypatch.setattr(image_listing, "_has_decoder", never)
    touched(tmp_path, "a.heic", "b.HEIC", "c.avif")
    with pytest.raises(GpusqError, match=r"3 images \(.avif, .heic\) can't be decoded here: pip install .*pillow-heif"):
        open_source(str(tmp_path), SIZE)
    Image.new("RGB", (8, 8)).save(tmp_path / "d.png")
    (told,) = remarks(open_source(str(tmp_path), SIZE))
    assert told == "3 images (.avif, .heic) can't be decoded here: pip install pillow-avif-plugin pillow-heif"


def test_files_are_listed_without_being_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched(tmp_path, *(f"{index}.png" for index in range(50)))

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("opened")

    monkeypatch.setattr(Image, "open", refuse)
    assert len(open_source(str(tmp_path), SIZE, most=5)) == 5


def test_names_that_are_no_text_are_read_and_can_be_told(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    for name, content in ((b"/good\xff.png", None), (b"/bad\xff.png", b"")):
        path = Path(os.fsdecode(folder + name))
        if content is None:
            Image.new("RGB", (8, 8)).save(path)
        else:
            path.write_bytes(content)
    source = open_source(os.fsdecode(folder), SIZE)
    source.name.encode()
    with pytest.raises(GpusqError, match="the file is empty") as caught:
        source.sample(0)
    str(caught.value).encode()
    assert source.sample(1).shape == (3, 8, 8)
