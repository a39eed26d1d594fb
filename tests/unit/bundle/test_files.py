"""Bundles are written whole or not at all, and --force touches nothing but a bundle."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import pytest

from gpusq_deploy.artifacts.bundle_layout import CALIBRATION, MANIFEST, MODEL, PLAN, RECEIPT
from gpusq_deploy.bundle.files import (
    Bundle,
    damaged_files,
    files_in,
    new_bundle,
    read_bundle,
    require_place,
    require_whole,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.path_kind import is_bundle

NEW = "2026-02-02T00:00:00+00:00"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the bundle goes: alone in its folder, so that anything left beside it shows."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "bundle"


def beside(out: Path) -> list[str]:
    return sorted(os.listdir(out.parent))


def test_a_bundle_comes_back_as_it_was_written(out: Path) -> None:
    bundle = read_bundle(bundles.write(out))
    assert isinstance(bundle, Bundle)
    assert bundle.calibration == bundles.RANGES
    assert bundle.plan == bundles.model().plan
    assert [entry.path for entry in bundle.manifest.files] == [CALIBRATION, "engines/orin.plan", MODEL, PLAN, RECEIPT]
    assert list(damaged_files(out, bundle.manifest)) == []
    require_whole(bundle)
    assert beside(out) == ["bundle"]


def test_others_may_read_a_bundle(out: Path) -> None:
    assert bundles.write(out).stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError("stop"), GpusqError("stop"), KeyboardInterrupt("stop"), SystemExit(1)])
@pytest.mark.parametrize("old", [False, True])
def test_an_exception_inside_leaves_what_was_there(out: Path, error: BaseException, old: bool) -> None:
    before = bundles.listing(bundles.write(out)) if old else {}

    def build() -> None:
        with new_bundle(out, force=old) as folder:
            bundles.fill(folder, created=NEW)
            raise error

    with pytest.raises(type(error)):
        build()
    assert beside(out) == (["bundle"] if old else [])
    assert not old or bundles.listing(out) == before


def full_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Writing a file of that name fails half-way, as on a full disk."""
    whole = Path.write_bytes

    def write(path: Path, data: bytes) -> int:
        if path.name == name:
            whole(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)


@pytest.mark.parametrize("name", [PLAN, RECEIPT, MANIFEST])
@pytest.mark.parametrize("old", [False, True])
def test_a_full_disk_is_an_error_in_words_and_leaves_what_was_there(
    out: Path, monkeypatch: pytest.MonkeyPatch, name: str, old: bool
) -> None:
    before = bundles.listing(bundles.write(out)) if old else {}
    full_disk(monkeypatch, name)
    with pytest.raises(GpusqError, match="cannot write the bundle: No space left on device") as caught:
        bundles.write(out, force=old, created=NEW)
    assert name in str(caught.value.place)
    assert beside(out) == (["bundle"] if old else [])
    assert not old or bundles.listing(out) == before


def failing_rename(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    """The n-th rename fails; those before and after it work."""
    rename, calls = Path.rename, [0]

    def counted(path: Path, target: Path) -> Path:
        calls[0] += 1
        if calls[0] == which:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", counted)


@pytest.mark.parametrize("which", [1, 2])
def test_a_rename_that_fails_brings_the_old_bundle_back(out: Path, monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    before = bundles.listing(bundles.write(out))
    failing_rename(monkeypatch, which)
    with pytest.raises(GpusqError, match="Input/output error"):
        bundles.write(out, force=True, created=NEW)
    assert bundles.listing(out) == before
    assert beside(out) == ["bundle"]


def test_force_replaces_a_bundle_and_nothing_of_the_old_one_stays(out: Path) -> None:
    bundles.write(out)
    (out / "notes.txt").write_text("mine")
    bundles.write(out, force=True, created=NEW)
    assert read_bundle(out).manifest.created == NEW
    assert not (out / "notes.txt").exists()
    assert beside(out) == ["bundle"]


def test_without_force_a_bundle_is_refused_before_any_work(out: Path) -> None:
    before = bundles.listing(bundles.write(out))
    with pytest.raises(GpusqError, match="exists already") as caught:
        bundles.write(out, created=NEW)
    assert "--force" in str(caught.value.hint)
    assert bundles.listing(out) == before


def make_file(out: Path) -> None:
    out.write_text("mine")


def make_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("mine")


def make_empty_folder(out: Path) -> None:
    out.mkdir()


def make_web_page(out: Path) -> None:
    """Web applications and browser extensions have a manifest.json too."""
    make_folder(out)
    (out / MANIFEST).write_text('{"name": "my page", "manifest_version": 3}')


def make_list(out: Path) -> None:
    make_folder(out)
    (out / MANIFEST).write_text('["gpusq.bundle/1"]')


def make_garbage(out: Path) -> None:
    make_folder(out)
    (out / MANIFEST).write_bytes(b"\xff\xfe not json")


def make_link_to_folder(out: Path) -> None:
    make_folder(out.parent / "real")
    out.symlink_to("real")


def make_link_to_bundle(out: Path) -> None:
    bundles.write(out.parent / "real")
    out.symlink_to("real")


def make_dangling_link(out: Path) -> None:
    out.symlink_to("gone")


THINGS = [
    make_file,
    make_folder,
    make_empty_folder,
    make_web_page,
    make_list,
    make_garbage,
    make_link_to_folder,
    make_link_to_bundle,
    make_dangling_link,
]


@pytest.mark.parametrize("make", THINGS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_is_never_replaced(out: Path, make: Callable[[Path], None], force: bool) -> None:
    make(out)
    before = bundles.listing(out.parent), beside(out)
    with pytest.raises(GpusqError, match="is not a bundle" if force else "exists already") as caught:
        bundles.write(out, force=force)
    assert caught.value.place == str(out)
    assert caught.value.hint
    assert (bundles.listing(out.parent), beside(out)) == before


def test_what_appears_while_building_is_not_replaced(out: Path) -> None:
    def build() -> None:
        with new_bundle(out, force=False) as folder:
            bundles.fill(folder)
            make_folder(out)

    with pytest.raises(GpusqError, match="exists already"):
        build()
    assert bundles.listing(out) == {"thesis.tex": b"mine"}
    assert beside(out) == ["bundle"]


def test_a_missing_parent_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="does not exist") as caught:
        require_place(tmp_path / "a" / "b", force=False)
    assert caught.value.hint == f"mkdir -p {tmp_path / 'a'}"


@pytest.mark.parametrize("name", ["file/out", "file/deeper/still/out"])
def test_a_file_where_a_folder_must_be_is_named_and_no_command_is_proposed_that_would_fail(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GpusqError, match="a file lies where the folder") as caught:
        require_place(tmp_path / name, force=False)
    assert caught.value.place == str(tmp_path / "file")
    assert "mkdir" not in str(caught.value.hint)


def test_a_parent_that_may_not_be_written_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, _mode: int) -> bool:
        return False

    monkeypatch.setattr(os, "access", refuse)
    with pytest.raises(GpusqError, match="not writable"):
        require_place(out, force=False)


def test_a_name_that_the_disk_refuses_is_an_error_in_words(out: Path) -> None:
    with pytest.raises(GpusqError, match="cannot write the bundle"):
        bundles.write(out.with_name("x" * 255))


def test_a_relative_place_is_that_of_the_working_folder(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out.parent)
    bundles.write(Path("bundle"))
    assert is_bundle(out)


@pytest.mark.parametrize("name", [MODEL, PLAN, RECEIPT, CALIBRATION, "engines/orin.plan"])
def test_a_flipped_bit_is_found(out: Path, name: str) -> None:
    bundle = read_bundle(bundles.write(out))
    data = bytearray((out / name).read_bytes())
    dice = random.Random(name)
    for _ in range(5):
        place, bit = dice.randrange(len(data)), 1 << dice.randrange(8)
        data[place] ^= bit
        (out / name).write_bytes(data)
        (fault,) = damaged_files(out, bundle.manifest)
        assert fault.startswith(f"{name} is not the file that was built")
        data[place] ^= bit
    (out / name).write_bytes(data)
    assert list(damaged_files(out, bundle.manifest)) == []


@pytest.mark.parametrize("change", ["remove", "grow", "shrink", "folder"])
def test_files_that_are_missing_or_of_another_size_are_found(out: Path, change: str) -> None:
    bundle = read_bundle(bundles.write(out))
    path = out / MODEL
    data = path.read_bytes()
    path.unlink()
    if change == "folder":
        path.mkdir()
    elif change != "remove":
        path.write_bytes(data + b"\0" if change == "grow" else data[:-1])
    (fault,) = damaged_files(out, bundle.manifest)
    assert fault.startswith(f"{MODEL} is {'missing' if change in {'remove', 'folder'} else 'not the file'}")
    with pytest.raises(GpusqError, match=MODEL):
        require_whole(bundle)


def test_two_damaged_files_are_both_named(out: Path) -> None:
    bundle = read_bundle(bundles.write(out))
    (out / MODEL).unlink()
    (out / "engines" / "orin.plan").write_bytes(b"an enginf")
    with pytest.raises(GpusqError, match=r"orin\.plan.*; model\.onnx is missing"):
        require_whole(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(out: Path) -> None:
    out.mkdir()
    for path in (out, out.parent):
        assert not is_bundle(path)
        with pytest.raises(GpusqError, match="not a bundle") as caught:
            read_bundle(path)
        assert "gpusq-build" in str(caught.value.hint)
    with pytest.raises(GpusqError, match="no such file or folder"):
        read_bundle(out / "none")


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", [MANIFEST, PLAN, RECEIPT, CALIBRATION])
def test_a_description_of_another_schema_or_with_more_fields_is_refused(out: Path, name: str) -> None:
    for change in ({"schema": "gpusq.other/9"}, {"surplus": 1}):
        bundles.write(out, force=out.exists())
        change_json(out / name, **change)
        with pytest.raises(GpusqError, match="not a valid") as caught:
            read_bundle(out)
        assert caught.value.place == str(out / name)
        change_json(out / MANIFEST, schema="gpusq.bundle/1")


@pytest.mark.parametrize("name", [PLAN, RECEIPT])
def test_a_missing_description_is_named(out: Path, name: str) -> None:
    bundles.write(out)
    (out / name).unlink()
    with pytest.raises(GpusqError, match="cannot read the file") as caught:
        read_bundle(out)
    assert caught.value.place == str(out / name)


def test_a_bundle_without_ranges_has_none(out: Path) -> None:
    bundles.write(out)
    (out / CALIBRATION).unlink()
    assert read_bundle(out).calibration is None


def test_files_are_listed_sorted_with_size_and_without_the_manifest(tmp_path: Path) -> None:
    for name in ("b", "a/c", "a/b/d", MANIFEST):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert [(entry.path, entry.size) for entry in files_in(tmp_path)] == [("a/b/d", 5), ("a/c", 3), ("b", 1)]
