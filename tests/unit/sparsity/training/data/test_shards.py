"""WebDataset shards, as `tar` and Python's tarfile write them."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.shards import names_shards, open_shards


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def levels(text: str) -> list[tuple[int, object]]:
    found = open_shards(text)
    pairs: list[tuple[int, object]] = []
    for index in range(len(found)):
        image, target = found.entry(index)
        pairs.append((int(np.asarray(image)[0, 0]), target))
    return pairs


def test_ranges_folders_and_one_file_are_read_in_order(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"s-{number:03d}.tar", {"a.png": png(number), "a.cls": b"%d\n" % number})
    whole = [(0, 0), (1, 1), (2, 2)]
    assert levels(str(tmp_path / "s-{000..002}.tar")) == whole
    assert levels(str(tmp_path)) == whole
    assert levels(str(tmp_path / "s-001.tar")) == [(1, 1)]
    assert names_shards(str(tmp_path))
    assert not names_shards(str(tmp_path.parent / "none"))


def test_what_tar_writes_and_json_labels_are_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, data in {"x/0.1.png": png(7), "x/0.1.json": b"{}", "y.jpg.txt": b"-"}.items():
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    subprocess.run(["tar", "cf", tmp_path / "t.tar", "-C", tmp_path / "in", "."], check=True)
    with pytest.raises(GpusqError, match="hold no image"):
        open_shards(str(tmp_path / "t.tar"))  # `0.1.png` is the member `1.png` of `0`: no image's suffix
    shard(tmp_path / "j.tar", {"0.png": png(3), "0.json": b'{"label": 4}', "1.png": png(5), "1.json": b'{"class": 2}'})
    assert levels(str(tmp_path / "j.tar")) == [(3, 4), (5, 2)]


def test_without_classes_there_are_no_labels(tmp_path: Path) -> None:
    found = open_shards(str(shard(tmp_path / "s.tar", {"0.png": png(3), "1.png": png(4)})))
    assert not found.labelled
    assert found.entry(1).target is None


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"0.png": png(1), "1.png": png(2), "1.cls": b"1"}, "1 of 2 samples have no class"),
        ({"0.png": png(1), "0.cls": b"cat"}, "its class is no number"),
        ({"0.png": png(1), "0.json": b"[1]"}, "its class is no number"),
        ({"0.png": png(1), "0.jpg": png(1)}, "the sample has 2 images"),
        ({"0.txt": b"words"}, "hold no image"),
    ],
)
def test_samples_that_are_none_are_told(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    with pytest.raises(GpusqError, match=said):
        open_shards(str(shard(tmp_path / "s.tar", members)))


def test_damage_is_told_with_its_shard(tmp_path: Path) -> None:
    path = shard(tmp_path / "s.tar", {"0.png": png(1), "1.png": b"no image"})
    with pytest.raises(GpusqError, match="not a readable image") as caught:
        open_shards(str(path)).entry(1)
    assert caught.value.place == f"{path}, sample 1"
    whole = path.read_bytes()
    for keep in (700, 513, 100):
        path.write_bytes(whole[:keep])
        with pytest.raises(GpusqError, match=r"cut short|can't be read|hold no image"):
            open_shards(str(path))
    with pytest.raises(GpusqError, match="can't be read: No such file"):
        open_shards(str(tmp_path / "none.tar"))
