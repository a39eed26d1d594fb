"""Sources of samples: what is refused, what is skipped, and that order and batches change nothing."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.calibration.data import (
    ArrayFile,
    Batches,
    ImageFolder,
    RandomNoise,
    Selection,
    filled,
    open_source,
    preprocessing_of_arrays,
    source_from_iterable,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor

SIZE = Preprocessing(
    channels=3, height=8, width=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear", origin="test"
)
Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder of `good` images and `bad` files that only look like images."""

    def make(good: int, bad: int = 0) -> Path:
        place = tmp_path / "images"
        place.mkdir()
        for index in range(good):
            pixels = np.full((8, 8, 3), index, np.uint8)
            Image.fromarray(pixels).save(place / f"good-{index:02d}.png")
        for index in range(bad):
            (place / f"bad-{index:02d}.png").write_bytes(b"damaged")
        return place

    return make


def save(path: Path, array: npt.NDArray[Any]) -> str:
    np.save(path, array)
    return str(path)


def read(source: Any, size: int = 4) -> tuple[npt.NDArray[np.float32], Batches]:
    batches = Batches(source=source, size=size)
    return np.concatenate(list(batches)), batches


@pytest.mark.parametrize(
    "array",
    [
        np.ones((2, 3, 8), np.float32),
        np.ones((2, 3, 8, 9), np.float32),
        np.ones((2, 1, 8, 8), np.float32),
        np.ones((2, 8, 8, 3), np.float32),
        np.ones((2, 3, 8, 8), np.uint8),
        np.ones((2, 3, 8, 8), np.complex64),
        np.ones((2, 3, 8, 8), np.bool_),
        np.ones((), np.float32),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_an_array_that_the_model_cannot_take_is_refused(tmp_path: Path, array: npt.NDArray[Any]) -> None:
    path = save(tmp_path / "data.npy", array)
    with pytest.raises(GpusqError, match=r"float32 \[N, 3, 8, 8\]") as caught:
        open_source(path, SIZE)
    assert str(array.dtype) in caught.value.what
    assert (caught.value.place, bool(caught.value.hint)) == (path, True)


@pytest.mark.parametrize(
    ("shape", "kind", "hint"),
    [
        ((0, 3, 8, 6), "f4", "no sample"),
        ((4, 3, 8, 6), "u1", "as float32"),
        ((4, 3, 8, 6), "c8", "as float32"),
        ((3, 8, 6), "f4", "array[None]"),
        ((8, 6, 3), "f4", "array[None]"),
        ((8, 6), "f4", "numpy.stack"),
        ((4, 8, 6, 3), "f4", "array.transpose(0, 3, 1, 2)"),
        ((4, 1, 8, 6), "f4", "channels are another number"),
        ((4, 3, 6, 8), "f4", "prepare the samples at 8 x 6"),
        ((4, 3, 16, 12), "f2", "prepare the samples at 8 x 6"),
    ],
)
def test_what_is_wrong_with_an_array_is_named(tmp_path: Path, shape: tuple[int, ...], kind: str, hint: str) -> None:
    size = Preprocessing(channels=3, height=8, width=6, mean=(0.0,) * 3, std=(1.0,) * 3, origin="test")
    with pytest.raises(GpusqError) as caught:
        open_source(save(tmp_path / "data.npy", np.ones(shape, kind)), size)
    assert hint in str(caught.value.hint)
    # What isn't the trouble isn't blamed.
    assert ("float32" in str(caught.value.hint)) == (kind in {"u1", "c8"})


def test_an_array_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GpusqError):
        open_source(save(tmp_path / "data.npy", np.ones((0, 3, 8, 8), np.float32)), SIZE)


class Trap:
    """Unpickling this creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickled_array_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "data.npy", tmp_path / "executed"
    array = np.empty(1, object)
    array[0] = Trap(trace)
    np.save(path, array, allow_pickle=True)
    with pytest.raises(GpusqError, match=r"not a \.npy file"):
        open_source(str(path), SIZE)
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x80\x02."]
)
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npy"
    path.write_bytes(content)
    with pytest.raises(GpusqError, match=r"not a \.npy file, or damaged") as caught:
        open_source(str(path), SIZE)
    assert caught.value.hint


def test_an_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.ones((2, 3, 8, 8), np.float32))
    (tmp_path / "data.npz").rename(tmp_path / "data.npy")
    with pytest.raises(GpusqError, match=r"not a \.npy file, or damaged"):
        open_source(str(tmp_path / "data.npy"), SIZE)


@pytest.mark.filterwarnings("ignore")  # numpy warns about headers that it reads all the same
def test_a_damaged_array_is_refused_or_read(tmp_path: Path) -> None:
    dice, path = random.Random(8), tmp_path / "data.npy"
    data = Path(save(path, np.ones((2, 3, 8, 8), np.float32))).read_bytes()
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(dice.randrange(1, 4)):
            damaged[dice.randrange(128)] = dice.randrange(256)
        path.write_bytes(damaged[: dice.choice((len(data), dice.randrange(len(data))))])
        with contextlib.suppress(GpusqError):
            read(open_source(str(path), SIZE))


@pytest.mark.parametrize("name", ["none", "none.npy", "x" * 300, "a\0b"])
def test_a_source_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GpusqError, match="no such file or folder") as caught:
        open_source(str(tmp_path / name), SIZE)
    assert "--calib takes" in str(caught.value.hint)


def test_a_single_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(GpusqError, match="not a source"):
        open_source(str(path), SIZE)


def test_a_folder_without_images_is_refused(folder: Folder) -> None:
    place = folder(0)
    (place / "notes.txt").touch()
    with pytest.raises(GpusqError, match="no images in the folder") as caught:
        open_source(str(place), SIZE)
    assert ".png" in str(caught.value.hint)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_array_gives_its_rows_as_float32(tmp_path: Path, dtype: Any) -> None:
    array = np.random.default_rng(9).standard_normal((5, 3, 8, 8)).astype(dtype)
    source = open_source(save(tmp_path / "data.npy", array), SIZE)
    assert isinstance(source, ArrayFile)
    values, batches = read(source)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, array.astype(np.float32))
    assert (batches.count, batches.skipped) == (5, [])


def test_an_array_in_column_order_gives_the_same_rows(tmp_path: Path) -> None:
    array = np.random.default_rng(9).standard_normal((5, 3, 8, 8)).astype(np.float32)
    source = open_source(save(tmp_path / "data.npy", np.asfortranarray(array)), SIZE)
    np.testing.assert_array_equal(read(source)[0], array)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_a_row_that_is_not_finite_in_float32_is_skipped_by_number(tmp_path: Path, value: float) -> None:
    array = np.zeros((5, 3, 8, 8), np.float64)
    array[3, 0, 0, 0] = value
    path = save(tmp_path / "data.npy", array)
    values, batches = read(open_source(path, SIZE))
    assert len(values) == 4
    assert batches.skipped == [f"{path}, row 3: the sample holds NaN or infinity"]


def test_damaged_images_are_skipped_by_name_up_to_a_tenth(folder: Folder) -> None:
    place = folder(18, 2)
    source = open_source(str(place), SIZE)
    assert isinstance(source, ImageFolder)
    values, batches = read(source)
    assert (len(values), batches.count, len(batches.skipped)) == (18, 18, 2)
    assert all(f"bad-{index:02d}.png" in text for index, text in enumerate(batches.skipped))
    assert (values[:, 0, 0, 0] * 255).round().tolist() == list(range(18))


def test_more_damaged_images_than_a_tenth_stop_it(folder: Folder) -> None:
    source = open_source(str(folder(17, 3)), SIZE)
    with pytest.raises(GpusqError, match="at least 3 of 20 samples can't be read") as caught:
        read(source)
    assert "bad-02.png" in caught.value.what
    assert caught.value.hint


def test_one_damaged_image_of_a_few_is_forgiven_and_two_are_not(folder: Folder, tmp_path: Path) -> None:
    place = folder(3, 1)
    assert len(read(open_source(str(place), SIZE))[0]) == 3
    (place / "bad-02.png").touch()
    with pytest.raises(GpusqError, match="2 of 5"):
        read(open_source(str(place), SIZE))


def test_a_folder_of_nothing_but_damage_is_refused(folder: Folder) -> None:
    with pytest.raises(GpusqError, match="no sample could be read"):
        list(Batches(source=open_source(str(folder(0, 1)), SIZE), size=4))


def test_noise_depends_on_the_index_alone_and_says_that_it_is_synthetic() -> None:
    source = open_source("random", SIZE)
    assert isinstance(source, RandomNoise)
    assert source.synthetic
    np.testing.assert_array_equal(source.sample(3), RandomNoise(preprocessing=SIZE).sample(3))
    assert not np.array_equal(source.sample(3), source.sample(4))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 99])
def test_batches_hold_every_sample_once_in_order(tmp_path: Path, size: int) -> None:
    array = np.random.default_rng(10).standard_normal((11, 3, 8, 8)).astype(np.float32)
    batches = list(Batches(source=open_source(save(tmp_path / "data.npy", array), SIZE), size=size))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    np.testing.assert_array_equal(np.concatenate(batches), array)


def test_a_selection_gives_the_samples_that_it_names(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32)
    whole = open_source(save(tmp_path / "data.npy", array), SIZE)
    part = Selection(source=whole, indices=[5, 0, 2])
    assert (len(part), part.name, part.synthetic) == (3, whole.name, False)
    assert read(part)[0][:, 0, 0, 0].tolist() == [5, 0, 2]


def test_a_short_batch_grows_by_its_last_sample() -> None:
    batch = np.arange(3, dtype=np.float32)[:, None]
    assert filled(batch, 5)[:, 0].tolist() == [0, 1, 2, 2, 2]
    assert filled(batch, 3) is batch
    assert filled(batch, None) is batch


def test_an_empty_name_is_not_the_working_folder() -> None:
    with pytest.raises(GpusqError, match="no such file or folder"):
        open_source("", SIZE)


def save_npz(path: Path, *, compressed: bool = False, **arrays: Any) -> str:
    save_it: Any = np.savez_compressed if compressed else np.savez
    save_it(path, **arrays)
    return str(path)


ROWS = np.random.default_rng(11).standard_normal((5, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("compressed", [False, True])
def test_the_only_array_of_an_archive_is_taken(tmp_path: Path, compressed: bool) -> None:
    source = open_source(save_npz(tmp_path / "data.npz", compressed=compressed, anything=ROWS), SIZE)
    np.testing.assert_array_equal(read(source)[0], ROWS)


@pytest.mark.parametrize(("names", "taken"), [(("labels", "images"), 1), (("input", "x"), 0), (("input", "images"), 1)])
def test_of_several_arrays_the_one_with_the_known_name_is_taken(
    tmp_path: Path, names: tuple[str, str], taken: int
) -> None:
    arrays: dict[str, Any] = {names[1 - taken]: np.zeros(5), names[taken]: ROWS}
    source = open_source(save_npz(tmp_path / "data.npz", **arrays), SIZE)
    np.testing.assert_array_equal(read(source)[0], ROWS)


def test_of_several_arrays_none_is_guessed(tmp_path: Path) -> None:
    path = save_npz(tmp_path / "data.npz", a=ROWS, b=ROWS)
    with pytest.raises(GpusqError, match="which of its arrays") as caught:
        open_source(path, SIZE)
    assert "a, b" in caught.value.what
    assert caught.value.place == path
    assert "images" in str(caught.value.hint)


def test_an_archive_with_an_array_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match=r"float32 \[N, 3, 8, 8\]"):
        open_source(save_npz(tmp_path / "data.npz", images=ROWS[:, :1]), SIZE)


def test_an_archive_with_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    array = np.empty(1, object)
    array[0] = Trap(trace)
    np.savez(tmp_path / "data.npz", images=array)
    with pytest.raises(GpusqError, match=r"not a \.npy file") as caught:
        open_source(str(tmp_path / "data.npz"), SIZE)
    assert caught.value.place == str(tmp_path / "data.npz")
    assert not trace.exists()


def test_a_damaged_archive_is_refused_or_read(tmp_path: Path) -> None:
    dice, path = random.Random(12), tmp_path / "data.npz"
    data = Path(save_npz(path, compressed=True, images=ROWS)).read_bytes()
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(dice.randrange(1, 4)):
            damaged[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(damaged[: dice.choice((len(data), dice.randrange(len(data))))])
        try:
            read(open_source(str(path), SIZE))
        except GpusqError:
            refused += 1
    assert refused > 100


def test_no_temporary_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    source = open_source(save_npz(tmp_path / "data.npz", images=ROWS), SIZE)
    other = source_from_iterable(ROWS, SIZE)
    assert list(scratch.iterdir()) == []
    np.testing.assert_array_equal(read(source)[0], read(other)[0])


TENSORS = torch.from_numpy(ROWS)
ITERABLES: dict[str, Callable[[], Any]] = {
    "arrays": lambda: list(ROWS),
    "a generator": lambda: (row for row in ROWS),
    "batches": lambda: [ROWS[:2], ROWS[2:4], ROWS[4:]],
    "tensors with a gradient": lambda: [row.clone().requires_grad_() for row in TENSORS],
    "a data loader": lambda: DataLoader(TensorDataset(TENSORS, torch.arange(5)), batch_size=2),
    "a dataset": lambda: TensorDataset(TENSORS, torch.arange(5)),
    "lists": lambda: [[row, 0] for row in ROWS],
    "one array": lambda: ROWS,
}


@pytest.mark.parametrize("kind", ITERABLES)
def test_an_iterable_gives_its_samples_in_order(kind: str) -> None:
    source = source_from_iterable(ITERABLES[kind](), SIZE, name=kind)
    assert (source.name, source.synthetic, len(source)) == (kind, False, 5)
    np.testing.assert_array_equal(read(source)[0], ROWS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_tensors_of_other_float_types_become_float32(dtype: torch.dtype) -> None:
    source = source_from_iterable([TENSORS.to(dtype)], SIZE)
    expected = array_from_tensor(TENSORS.to(dtype).float())
    np.testing.assert_array_equal(read(source)[0], expected)


@pytest.mark.parametrize(
    "bad",
    [ROWS[0, :1], np.zeros((3, 8, 8), np.int64), np.zeros((1, 1, 3, 8, 8), np.float32), "image.png", 3.0, None, ()],
    ids=str,
)
def test_an_item_that_is_no_sample_is_named_by_number(bad: Any) -> None:
    with pytest.raises(GpusqError, match="the model takes") as caught:
        source_from_iterable([ROWS[0], bad], SIZE, name="mine")
    assert caught.value.place == "mine, item 1"


def test_an_iterable_without_samples_is_refused() -> None:
    used_up = iter([ROWS])
    list(used_up)
    with pytest.raises(GpusqError, match="no sample"):
        source_from_iterable(used_up, SIZE)


def test_an_endless_iterable_is_stopped() -> None:
    def endless() -> Iterator[npt.NDArray[np.float32]]:
        while True:
            yield ROWS

    with pytest.raises(GpusqError, match="is it endless"):
        source_from_iterable(endless(), SIZE)


FACTORIES = """
import numpy as np
rows = lambda: iter(np.ones((4, 3, 8, 8), np.float32))
def fails(): raise KeyError("no such set")
def nothing(): return None
constant = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user_data").mkdir()
    (tmp_path / "user_data" / "sets.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("factories")
def test_a_factory_is_called_by_name() -> None:
    source = open_source("user_data.sets:rows", SIZE)
    assert (source.name, len(source)) == ("user_data.sets:rows", 4)


def test_a_factory_may_lie_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows_beside.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in {"", str(tmp_path)}])
    before = list(sys.path)
    assert len(open_source("rows_beside:rows", SIZE)) == 4
    assert sys.path == before


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize("name", ["fails", "nothing", "constant", "missing"])
def test_a_factory_that_fails_is_named(name: str) -> None:
    with pytest.raises(GpusqError, match="the factory of calibration data fails") as caught:
        open_source(f"user_data.sets:{name}", SIZE)
    assert caught.value.place == f"user_data.sets:{name}"
    assert caught.value.hint


def test_a_factory_in_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(GpusqError, match="ModuleNotFoundError"):
        open_source("no_such_package.sets:rows", SIZE)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_file_of_arrays_tells_the_shape_of_an_input_and_nothing_else(tmp_path: Path, suffix: str) -> None:
    array = np.zeros((2, 5, 8, 6), np.float32)
    text = save(tmp_path / "data.npy", array) if suffix == ".npy" else save_npz(tmp_path / "data.npz", images=array)
    found = preprocessing_of_arrays(text)
    assert found is not None
    assert (found.channels, found.height, found.width) == (5, 8, 6)
    assert not found.is_declared
    np.testing.assert_array_equal(read(open_source(text, found))[0], array)


def test_what_is_no_file_of_samples_tells_no_shape(tmp_path: Path) -> None:
    none = save(tmp_path / "none.npy", np.zeros((0, 3, 8, 6), np.float32))
    for text in (
        None,
        "random",
        "",
        str(tmp_path),
        str(tmp_path / "missing.npy"),
        none,
    ):
        assert preprocessing_of_arrays(text) is None
