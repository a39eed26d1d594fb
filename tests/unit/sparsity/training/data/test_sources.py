"""Saved data sets of the datasets library, and Datasets of people's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.data.load import DataRequest, Labels, load_data
from gpusq_deploy.sparsity.training.data.split import SplitOptions
from gpusq_deploy.sparsity.training.samples import TrainingData

DECLARED = Preprocessing(channels=3, height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3, origin="test")


def load(text: str, **changes: Any) -> TrainingData:
    split = SplitOptions(held_out=0.25, seed=0)
    return load_data(DataRequest(data=text, split=split, **changes), DECLARED, "accuracy", Labels(4, {}))


def pictures(count: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((8, 8, 3), 10 * index, np.uint8)) for index in range(count)]


def pairs(data: TrainingData) -> list[tuple[int, Any]]:
    """Level and target of every sample."""
    found: list[tuple[int, Any]] = []
    for part in (data.train, data.held_out):
        images, targets = part.batch(range(len(part)))
        levels = [round(float(level) * 255) for level in images[:, 0, 0, 0]]
        found += zip(levels, targets or [None] * len(images), strict=True)
    return sorted(found)


def test_a_saved_dataset_is_read_by_its_features(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(photo=datasets.Image(), kind=datasets.ClassLabel(names=["ant", "bee"]))
    rows = {"photo": pictures(8), "kind": [index % 2 for index in range(8)]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=table, test=table.select([0])).save_to_disk(str(tmp_path / "splits"))
    for name in ("one", "splits"):
        data = load(str(tmp_path / name))
        assert data.classes == ("ant", "bee")
        assert pairs(data) == [(10 * index, index % 2) for index in range(8)]
    table.remove_columns("photo").save_to_disk(str(tmp_path / "none"))
    with pytest.raises(GpusqError, match="0 columns of images and 1 of classes: kind"):
        load(str(tmp_path / "none"))
    datasets.DatasetDict(test=table).save_to_disk(str(tmp_path / "test"))
    with pytest.raises(GpusqError, match="none of the splits test is called train"):
        load(str(tmp_path / "test"))
    (next((tmp_path / "one").glob("*.arrow"))).write_bytes(b"damaged")
    with pytest.raises(GpusqError, match="the data set can't be read"):
        load(str(tmp_path / "one"))


CODE = """
import numpy as np, torch
from PIL import Image

class Pairs:
    classes = ["ant", "bee"]
    def __len__(self): return 8
    def __getitem__(self, index):
        if index >= 8: raise IndexError
        return Image.fromarray(np.full((8, 8, 3), 10 * index, np.uint8)), index % 2

class Arrays(Pairs):
    def __getitem__(self, index): return torch.full((3, 8, 8), index / 25.5)

class Small(Pairs):
    def __getitem__(self, index): return torch.zeros(3, 4, 4), 1

class Beyond(Pairs):
    def __getitem__(self, index): return super().__getitem__(index)[0], 9

class Floats(Pairs):
    def __getitem__(self, index): return super().__getitem__(index)[0], 1.5

class Words(Pairs):
    def __getitem__(self, index): return "words"

class Fails(Pairs):
    def __getitem__(self, index):
        if index: raise KeyError("no such file")
        return super().__getitem__(index)

def endless():
    while True: yield 1
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_training_data.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return "my_training_data"


def test_a_dataset_gives_pictures_with_classes_or_inputs_without(module: str) -> None:
    data = load(f"{module}:Pairs")
    assert data.classes == ("ant", "bee")
    assert pairs(data) == [(10 * index, index % 2) for index in range(8)]
    data = load(f"{module}:Arrays")
    assert (data.classes, data.train.labelled) == ((), False)
    assert pairs(data) == [(10 * index, None) for index in range(8)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Small", r"a sample is float \[3, 4, 4\], the model takes finite float \[3, 8, 8\]"),
        ("Beyond", "label 9 is none of the model's, 0 to 3"),
        ("Floats", "the first item is a tuple"),
        ("Words", "the first item is a str"),
        ("Fails", "can't be read, the last is .*KeyError: 'no such file'"),
        ("endless", "returns a generator, which has no items by number"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_what_is_no_dataset_is_told(module: str, name: str, said: str) -> None:
    with pytest.raises(GpusqError, match=said):
        load(f"{module}:{name}")


def test_augmented_images_are_decided_by_epoch_and_seed(module: str) -> None:
    plain, varied = load(f"{module}:Pairs"), load(f"{module}:Pairs", augment=True)
    state = torch.random.get_rng_state()
    first, again, later = (varied.train.batch([0, 1, 2, 3], epoch).images for epoch in (1, 1, 2))
    assert first.shape == (4, 3, 8, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(first[2], varied.train.batch([2], 1).images[0]), "whatever else is in the batch"
    assert torch.equal(state, torch.random.get_rng_state())
    for one, other in ((plain.held_out, varied.held_out), (plain.validation, varied.validation)):
        assert torch.equal(one.batch([0]).images, other.batch([0]).images)
    assert torch.equal(varied.declared.batch([0, 1]).images, plain.train.batch([0, 1]).images)
    assert plain.declared is plain.train
    with pytest.raises(GpusqError, match="augmentation is for images, and the data are arrays"):
        load(f"{module}:Arrays", augment=True).train.batch([0])


@pytest.mark.parametrize("changes", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_mixed_batches_have_the_shares_of_their_images(module: str, changes: dict[str, float]) -> None:
    plain, mixed = load(f"{module}:Pairs").train, load(f"{module}:Pairs", **changes).train
    indices = list(range(len(plain)))[:5]
    images, targets = mixed.batch(indices, 1)
    again = mixed.batch(indices, 1)
    assert torch.equal(images, again.images)
    assert targets is not None
    shares = torch.stack(list(targets))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(5))
    before, labels = plain.batch(indices)
    assert labels is not None
    assert torch.equal(images[4], before[4])
    assert shares[4].argmax() == labels[4]
    for place in range(4):  # timm mixes each image with that at the other end
        other = before[3 - place]
        keeps = float((images[place] - other).mean() / (before[place] - other).mean())
        expected = torch.zeros(4)
        expected[labels[place]] += keeps
        expected[labels[3 - place]] += 1 - keeps
        torch.testing.assert_close(shares[place], expected, atol=1e-3, rtol=0)
    declared = load(f"{module}:Pairs", **changes).declared.batch(indices)
    assert torch.equal(declared.images, before)
    assert declared.targets == labels
    with pytest.raises(GpusqError, match="mixing needs labels"):
        load(f"{module}:Arrays", **changes)
