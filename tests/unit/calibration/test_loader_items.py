"""What data loaders yield: pairs, dicts, images, 8-bit pixels; what isn't recognised is refused with what was found."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from gpusq_deploy.artifacts.arch import UNDECLARED, Preprocessing, preprocessing_of_shape
from gpusq_deploy.calibration.data import open_source, preprocessing_of_arrays, source_from_iterable
from gpusq_deploy.calibration.image_data import load_image
from gpusq_deploy.errors import GpusqError

SIZE = Preprocessing(
    channels=3, height=8, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), crop_fraction=0.9, origin="test"
)
UNKNOWN = Preprocessing(channels=3, height=8, width=8, mean=(0.0,) * 3, std=(1.0,) * 3, origin=UNDECLARED)
ROWS = np.random.default_rng(2).standard_normal((6, 3, 8, 8), dtype=np.float32)
TENSORS = torch.from_numpy(ROWS)
Array = npt.NDArray[Any]


class Pair(NamedTuple):
    image: Any
    label: int


class Numbered(Dataset[dict[str, Any]]):
    """A map-style dataset, whose indices end in no IndexError."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"label": index % 2, "pixel_values": TENSORS[index % len(ROWS)]}


def rows_of(source: Any) -> Array:
    return np.stack([source.sample(index) for index in range(len(source))])


def keyed(key: str) -> Callable[[], Any]:
    return lambda: [{"mask": np.zeros((8, 8)), key: row, "label": 1} for row in ROWS]


SPLITS: Any = {"train": Numbered(), "test": Numbered()}
TAKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "pixel_values": (keyed("pixel_values"), "pixel_values"),
    "image": (keyed("image"), "image"),
    "upper case": (keyed("Image"), "Image"),
    "another key": (keyed("samples"), "samples"),
    "lists of numbers": (lambda: [{"x": row.tolist()} for row in ROWS], "x"),
    "a preferred key": (lambda: [{"other": -row, "img": row} for row in ROWS], "img"),
    "a preferred key that doesn't fit": (lambda: [{"image": "1.png", "data": row} for row in ROWS], "data"),
    "a UserDict": (lambda: [UserDict({"pixel_values": row[None]}) for row in ROWS], "pixel_values"),
    "a loader of dicts": (lambda: DataLoader(Numbered(), batch_size=4), "pixel_values"),
    "a dataset of dicts": (Numbered, "pixel_values"),
    "one dict of all": (lambda: {"images": TENSORS, "labels": torch.arange(6)}, "images"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_the_image_of_a_dict_is_taken_and_its_key_is_said(kind: str) -> None:
    make, key = TAKEN[kind]
    source = source_from_iterable(make(), SIZE, name="mine")
    assert source.name == f"mine (key '{key}')"
    np.testing.assert_array_equal(rows_of(source), ROWS)


@pytest.mark.parametrize(
    "items",
    [
        [(row, 3) for row in ROWS],
        [(3, row) for row in ROWS],
        [Pair(row, 3) for row in ROWS],
        [("name.png", row) for row in TENSORS],
    ],
    ids=["image and label", "label and image", "named", "name and image"],
)
def test_the_first_that_fits_is_taken_of_a_tuple(items: Any) -> None:
    source = source_from_iterable(items, SIZE, name="mine")
    assert source.name == "mine"
    np.testing.assert_array_equal(rows_of(source), ROWS)


@pytest.fixture
def photo(tmp_path: Path) -> tuple[Image.Image, Array]:
    """An image, and what the folder of it gives."""
    pixels = np.random.default_rng(4).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    return image, load_image(tmp_path / "a.png", SIZE)


@pytest.mark.parametrize("form", ["image", "dict", "pair", "HWC", "CHW", "batch", "tensor", "RGBA"])
def test_images_and_8_bit_pixels_are_preprocessed_as_files_are(photo: tuple[Image.Image, Array], form: str) -> None:
    image, expected = photo
    pixels = np.asarray(image)
    forms: dict[str, Any] = {
        "image": image,
        "dict": {"image": image, "label": 3},
        "pair": (image, 3),
        "HWC": pixels,
        "CHW": pixels.transpose(2, 0, 1),
        "batch": np.stack([pixels, pixels]),
        "tensor": torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        "RGBA": image.convert("RGBA"),
    }
    source = source_from_iterable([forms[form]], SIZE, name="mine")
    assert len(source) == (2 if form == "batch" else 1)
    np.testing.assert_array_equal(source.sample(0), expected)
    assert ("8-bit pixels" in source.name) == (form in {"HWC", "CHW", "batch", "tensor"})


GREY: Any = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (7, 20, 30), np.uint8))
COLOUR: Any = torch.from_numpy(np.random.default_rng(6).integers(0, 256, (4, 3, 20, 30), np.uint8))


@pytest.mark.parametrize(
    "dataset",
    [GREY, TensorDataset(GREY), TensorDataset(GREY, torch.arange(7))],
    ids=["images", "tuples of one", "with labels"],
)
@pytest.mark.parametrize("size", [3, 4])
def test_grey_pixels_of_a_loader_are_as_many_images_as_it_has(tmp_path: Path, dataset: Any, size: int) -> None:
    """In batches of three, [3, H, W] could be one colour image."""
    source = source_from_iterable(DataLoader(dataset, batch_size=size), SIZE, name="mine")
    assert len(source) == 7
    Image.fromarray(GREY[4].numpy()).save(tmp_path / "4.png")
    np.testing.assert_array_equal(source.sample(4), load_image(tmp_path / "4.png", SIZE))
    assert "[N, H, W] as grey images" in source.name


def alone(batch: list[Any]) -> Any:
    """A collate function of batches of one."""
    return batch[0]


@pytest.mark.parametrize(
    "items",
    [
        COLOUR,
        list(COLOUR),
        [[*COLOUR[:3]], [*COLOUR[3:]]],
        DataLoader(COLOUR, batch_size=3),
        DataLoader(COLOUR, batch_size=3, collate_fn=list),
        DataLoader(COLOUR, collate_fn=alone),
        DataLoader(COLOUR, batch_size=None),
    ],
    ids=["array", "images", "lists", "loader", "unstacked", "by one", "unbatched"],
)
def test_colour_pixels_stay_one_image(tmp_path: Path, items: Any) -> None:
    source = source_from_iterable(items, SIZE, name="mine")
    assert len(source) == 4
    Image.fromarray(COLOUR[3].permute(1, 2, 0).numpy()).save(tmp_path / "3.png")
    np.testing.assert_array_equal(source.sample(3), load_image(tmp_path / "3.png", SIZE))


def test_where_nothing_tells_a_colour_image_from_grey_ones_it_is_said_which_was_taken() -> None:
    source = source_from_iterable([GREY[:3]], SIZE, name="mine")
    assert source.name == "mine (8-bit pixels [3, H, W] as one colour image, preprocessed as the model declares)"


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([{"image": np.zeros((3, 9, 9)), "label": 1}], r"a dict of image: float64 \[3, 9, 9\], label: int64 \[\]"),
        ([{"text": "a cat"}], "a dict of text: str"),
        ([dict[str, int]()], "a dict of "),
        ([("a.png", 3)], r"a tuple of str, int64 \[\]"),
        ([list[int]()], "a list of nothing"),
        (SPLITS, "the item is str"),
        ([object()], "the item is object"),
    ],
    ids=["size", "text", "empty", "tuple", "list", "splits", "object"],
)
def test_what_is_not_recognised_is_named_with_what_to_yield(items: Any, told: str) -> None:
    with pytest.raises(GpusqError, match=told) as caught:
        source_from_iterable(items, SIZE, name="mine")
    assert r"float32 [3, 8, 8]" in caught.value.what
    assert caught.value.place == "mine, item 0"
    assert caught.value.hint


def test_images_need_a_declared_preprocessing(photo: tuple[Image.Image, Array]) -> None:
    with pytest.raises(GpusqError, match="RGB image 30 x 20, and the model declares no preprocessing"):
        source_from_iterable([photo[0]], UNKNOWN)
    with pytest.raises(GpusqError, match="uint8"):
        source_from_iterable([np.asarray(photo[0])], UNKNOWN)


FACTORIES = """
import numpy as np, torch
from torch.utils.data import DataLoader, TensorDataset
array = lambda: np.ones((6, 32, 64), np.float32)
tensor = lambda: torch.ones(6, 32, 64)
loader = lambda: DataLoader(TensorDataset(torch.ones(6, 32, 64), torch.ones(6)), batch_size=2)
dicts = lambda: DataLoader([{"label": 1, "x": torch.ones(32, 64)}] * 6, batch_size=2)
rows = lambda: list(np.ones((6, 32, 64), np.float32))
flat = lambda: np.ones(6, np.float32)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "axes_data.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    return "axes_data"


@pytest.mark.parametrize("name", ["array", "tensor", "loader", "dicts"])
def test_a_function_that_returns_all_samples_or_batches_tells_their_shape(factories: str, name: str) -> None:
    found = preprocessing_of_arrays(f"{factories}:{name}")
    assert found is not None
    assert (found.sample_shape, found.is_image, found.is_declared) == ((32, 64), False, False)
    source = open_source(f"{factories}:{name}", found)
    assert (len(source), source.sample(5).shape) == (6, (32, 64))


@pytest.mark.parametrize("name", ["rows", "flat"])
def test_where_samples_and_batches_look_alike_that_is_said(factories: str, name: str) -> None:
    with pytest.raises(GpusqError, match="the data doesn't tell it") as caught:
        preprocessing_of_arrays(f"{factories}:{name}")
    assert "one array [N, ...]" in str(caught.value.hint)
    declared = preprocessing_of_shape((32, 64), "test")
    assert name == "flat" or len(open_source(f"{factories}:{name}", declared)) == 6


@pytest.mark.parametrize("shape", [(64,), (32, 64), (3, 4, 16, 16), (2, 2, 2, 2, 2)], ids=str)
def test_arrays_of_any_number_of_axes_tell_the_shape_of_an_input(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal((5, *shape)).astype(np.float32)
    np.save(tmp_path / "data.NPY.npy", array)
    text = str(tmp_path / "data.NPY.npy")
    found = preprocessing_of_arrays(text)
    assert found is not None
    assert (found.sample_shape, found.is_image) == (shape, False)
    np.testing.assert_array_equal(rows_of(open_source(text, found)), array)
    assert open_source("random", found).sample(0).shape == shape
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(GpusqError, match="that is no image"):
        open_source(str(tmp_path), found)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((32, 64), "array[None]"), ((64,), "3 axes in all"), ((5, 1, 32, 64), "it has 4 axes, the input has 3")],
)
def test_arrays_of_other_axes_than_the_input_name_them(tmp_path: Path, shape: tuple[int, ...], hint: str) -> None:
    np.save(tmp_path / "data.npy", np.zeros(shape, np.float32))
    with pytest.raises(GpusqError, match=r"the model takes float32 \[N, 32, 64\]") as caught:
        open_source(str(tmp_path / "data.npy"), preprocessing_of_shape((32, 64), "test"))
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(("most", "indices"), [(1, [0]), (4, [0, 2, 5, 7]), (10, range(10)), (99, range(10))])
def test_at_most_so_many_samples_are_spread_evenly(tmp_path: Path, most: int, indices: Any) -> None:
    np.save(tmp_path / "data.npy", np.arange(10, dtype=np.float32)[:, None])
    text = str(tmp_path / "data.npy")
    source = open_source(text, preprocessing_of_shape((1,), "test"), most=most)
    assert rows_of(source)[:, 0].tolist() == list(indices)
    assert source.name == (text if most >= 10 else f"{text} ({most} of 10 samples)")


def test_a_batch_that_nobody_stacked_is_all_taken() -> None:
    unstacked = [[ROWS[0], ROWS[1]], [ROWS[2], ROWS[3]], [ROWS[4], ROWS[5]]]  # as collate_fn=list gives
    np.testing.assert_array_equal(rows_of(source_from_iterable(unstacked, SIZE)), ROWS)
