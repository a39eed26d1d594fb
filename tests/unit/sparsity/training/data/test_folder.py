"""Folders of images: classes, splits, damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.calibration.image_data import load_image
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.entries import EntrySamples
from gpusq_deploy.sparsity.training.data.load import DataRequest, Labels, load_data
from gpusq_deploy.sparsity.training.data.split import SplitOptions
from gpusq_deploy.sparsity.training.samples import Samples, TrainingData

PREPROCESSING = Preprocessing(channels=1, height=8, width=8, mean=(0.5,), std=(0.25,), origin="test")


def write(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), level, dtype=np.uint8)).save(path)
    return path


def class_folder(root: Path, counts: dict[str, int]) -> Path:
    """Class i holds images of grey level 10 · i + place."""
    for number, (name, count) in enumerate(sorted(counts.items())):
        (root / name).mkdir(parents=True)
        for index in range(count):
            write(root / name / f"{index}.png", 10 * number + index)
    return root


def load(folder: Path, *, seed: int = 0, held_out: float = 0.25, keep_below: int = 1 << 20) -> TrainingData:
    split = SplitOptions(held_out=held_out, seed=seed, keep_below=keep_below)
    return load_data(DataRequest(data=str(folder), split=split), PREPROCESSING, "accuracy", Labels(10, {}))


def files(samples: Samples) -> list[Path]:
    assert isinstance(samples, EntrySamples)
    found = [samples.entries.entry(index).image for index in samples.indices]
    return [image for image in found if isinstance(image, Path)]


def is_kept(samples: Samples) -> bool:
    assert isinstance(samples, EntrySamples)
    return samples.kept is not None


def test_labels_follow_the_sorted_names_and_stay_with_their_images(tmp_path: Path) -> None:
    data = load(class_folder(tmp_path, {"dog": 4, "ant": 5, "cat": 3}))
    assert data.classes == ("ant", "cat", "dog")
    assert len(data.train) == 9
    assert len(data.held_out) == 3
    for part in (data.train, data.held_out):
        batch = part.batch(range(len(part)))
        assert batch.targets is not None
        levels = torch.round((batch.images[:, 0, 0, 0] * 0.25 + 0.5) * 255)
        assert torch.equal(torch.div(levels, 10, rounding_mode="floor").long(), torch.tensor(batch.targets))


def test_an_empty_class_keeps_its_place(tmp_path: Path) -> None:
    data = load(class_folder(tmp_path, {"a": 2, "b": 0, "c": 2}))
    assert data.classes == ("a", "b", "c")
    labels = [label for part in (data.train, data.held_out) for label in part.batch(range(len(part))).targets or ()]
    assert sorted(labels) == [0, 0, 2, 2]
    assert data.remarks == ("no images of 1 class: b",)


def test_samples_are_what_calibration_sees_kept_or_not(tmp_path: Path) -> None:
    folder = class_folder(tmp_path, {"a": 4, "b": 4})
    kept, read = load(folder), load(folder, keep_below=0)
    assert is_kept(kept.train)
    assert not is_kept(read.train)
    for order in ([3, 0], [1, 1, 5]):
        expected = np.stack([load_image(files(kept.train)[index], PREPROCESSING) for index in order])
        for data in (kept, read):
            batch = data.train.batch(order)
            assert torch.equal(batch.images, torch.from_numpy(expected))
            assert batch.images.dtype == torch.float32


def test_the_split_is_fixed_by_the_seed_and_loses_nothing(tmp_path: Path) -> None:
    folder = class_folder(tmp_path, {"a": 10, "b": 10})
    splits = [load(folder, seed=seed) for seed in (0, 0, 1)]
    held_out = [files(data.held_out) for data in splits]
    assert held_out[0] == held_out[1]
    assert held_out[0] != held_out[2]
    assert len(held_out[0]) == 5
    assert len(splits[0].validation) == 1
    parts = (held_out[0], files(splits[0].train), files(splits[0].validation))
    assert sorted(file for part in parts for file in part) == sorted(folder.rglob("*.png"))
    few = load(class_folder(tmp_path / "few", {"a": 4}))
    assert files(few.validation) == files(few.train)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_each_side_gets_at_least_one(tmp_path: Path, share: float) -> None:
    data = load(class_folder(tmp_path, {"a": 2, "b": 2}), held_out=share)
    assert {len(data.train), len(data.held_out)} == {1, 3}


@pytest.mark.parametrize("inner", [".", "images", "deep/er"])
def test_a_flat_folder_has_no_labels(tmp_path: Path, inner: str) -> None:
    for index in range(4):
        write(tmp_path / inner / f"{index}.png", index)
    data = load(tmp_path)
    assert data.classes == ()
    assert not data.train.labelled
    assert data.train.batch([0]).targets is None


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    folder = class_folder(tmp_path, {"a": 2, "b": 2})
    write(folder / ".cache" / "x.png", 0)
    data = load(folder)
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.held_out) == 4


def test_a_damaged_image_is_skipped_and_named_and_labels_stay_right(tmp_path: Path) -> None:
    folder = class_folder(tmp_path, {"a": 3, "b": 3})
    (folder / "a" / "1.png").write_bytes(b"not an image")
    data = load(folder)
    assert len(data.skipped) == 1
    assert "1.png" in data.skipped[0]
    for part in (data.train, data.held_out):
        batch = part.batch(range(len(part)))
        assert batch.targets is not None
        assert [file.parent.name for file in files(part)] == ["ab"[label] for label in batch.targets]
        assert len(part) == len(batch.images)


def test_too_many_damaged_images_are_an_error(tmp_path: Path) -> None:
    folder = class_folder(tmp_path, {"a": 3, "b": 3})
    for name in ("0", "1"):
        (folder / "a" / f"{name}.png").write_bytes(b"not an image")
    with pytest.raises(GpusqError, match="2 of 6 samples can't be read"):
        load(folder)


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="no such folder"):
        load(tmp_path / "missing")
    file = write(tmp_path / "one.png", 1)
    with pytest.raises(GpusqError, match="not a folder"):
        load(file)
    with pytest.raises(GpusqError, match="1 of 1 images can be read"):
        load(tmp_path)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("words")
    with pytest.raises(GpusqError, match="no images in the folder"):
        load(tmp_path / "text")


def test_one_readable_image_is_not_enough(tmp_path: Path) -> None:
    write(tmp_path / "one.png", 1)
    (tmp_path / "two.png").write_bytes(b"not an image")
    with pytest.raises(GpusqError, match="1 of 2 images can be read"):
        load(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    folder = class_folder(tmp_path, {"a": 2, "b": 2})
    write(folder / "stray.png", 1)
    with pytest.raises(GpusqError, match=r"beside the class folders, the first stray\.png"):
        load(folder)


def test_more_classes_than_the_model_has_are_refused(tmp_path: Path) -> None:
    folder = class_folder(tmp_path, dict.fromkeys("abcdefghijk", 1))
    with pytest.raises(GpusqError, match="11 classes, the model has only 10"):
        load(folder)
