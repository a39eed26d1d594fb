"""Where calibration data comes from: images, arrays, an iterable, or, only by name, random numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts import UNDECLARED, Preprocessing, preprocessing_of_shape
from gpusq_deploy.calibration.array_data import called, mapped_npy, mapped_npz, names_factory, spooled
from gpusq_deploy.calibration.image_data import Sample, load_image
from gpusq_deploy.calibration.image_decoding import frames_remark, turned_remark
from gpusq_deploy.calibration.image_listing import SUFFIXES, listed
from gpusq_deploy.calibration.loader_items import ItemReader, batch_shape
from gpusq_deploy.errors import GpusqError, printable
from gpusq_deploy.text import counted, some

RANDOM = "random"
_RANDOM_SAMPLES = 16
_MAX_UNREADABLE = 0.1
_ARRAY_FILES = {".npy": mapped_npy, ".npz": mapped_npz}
_KINDS = (
    "a folder of images; a .npy or .npz file of preprocessed float32 [N, C, H, W], or [N, ...] of a model whose input "
    "is no image; package.module:factory that returns an iterable of samples or batches; or 'random'"
)


class Counted(Protocol):
    """So many samples from somewhere."""

    @property
    def name(self) -> str:
        """Where it comes from, for the manifest."""
        ...

    def __len__(self) -> int: ...


class DataSource(Counted, Protocol):
    """Samples by index; loading one may fail with a GpusqError that names its file."""

    @property
    def synthetic(self) -> bool:
        """True where no real data is in it."""
        ...

    def sample(self, index: int) -> Sample:
        """Sample `index` as float32, in the shape of the model's input without N: [C, H, W] of images."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """Images below a folder, preprocessed as the model declares; `lacking` tells of those that can't be decoded here.

    Raises:
        GpusqError: The model's input is no image.
    """

    name: str
    files: tuple[Path, ...]
    preprocessing: Preprocessing
    synthetic: bool = False
    lacking: str = ""

    def __post_init__(self) -> None:
        if not self.preprocessing.is_image:
            shape = self.preprocessing.sample_shape
            why = f"no image has {shape[0]} channels" if len(shape) == 3 else "that is no image"
            raise GpusqError(
                f"the model takes float32 [N, {', '.join(map(str, shape))}]: {why}",
                place=self.name,
                hint="give its data as a .npy or .npz file of such arrays",
            )

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int) -> Sample:
        """Load image `index`."""
        return load_image(self.files[index], self.preprocessing)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayFile:
    """Preprocessed samples as one float array [N, ...], mapped rather than loaded."""

    name: str
    values: npt.NDArray[Any]
    synthetic: bool = False

    def __len__(self) -> int:
        return len(self.values)

    def sample(self, index: int) -> Sample:
        """Row `index`; refuses values that aren't finite."""
        with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinite, and is refused below
            row = np.asarray(self.values[index], dtype=np.float32)
        if not np.isfinite(row).all():
            raise GpusqError("the sample holds NaN or infinity", place=f"{self.name}, row {index}")
        return row


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomNoise:
    """Standard normal noise: it exercises the pipeline and says nothing about the model's real ranges."""

    preprocessing: Preprocessing
    name: str = "random (standard normal, seed 0)"
    synthetic: bool = True

    def __len__(self) -> int:
        return _RANDOM_SAMPLES

    def sample(self, index: int) -> Sample:
        """Noise that depends on `index` alone."""
        shape = self.preprocessing.sample_shape
        return np.random.default_rng(index).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Some samples of another source, in the given order; `of` names them where the whole source's name won't do."""

    source: DataSource
    indices: Sequence[int]
    of: str = ""

    @property
    def name(self) -> str:
        """Where they come from."""
        return self.of or self.source.name

    @property
    def synthetic(self) -> bool:
        """As the whole source."""
        return self.source.synthetic

    def __len__(self) -> int:
        return len(self.indices)

    def sample(self, index: int) -> Sample:
        """Sample `indices[index]` of the whole source."""
        return self.source.sample(self.indices[index])


@dataclass(kw_only=True, slots=True)
class Batches:
    """One pass over a source in batches; unreadable samples are named in `skipped`, and too many of them stop it.

    Raises:
        GpusqError: More than a tenth of the samples can't be read, or none can.
    """

    source: DataSource
    size: int
    skipped: list[str] = field(default_factory=list[str])
    count: int = 0

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        held: list[Sample] = []
        for index in range(len(self.source)):
            try:
                held.append(self.source.sample(index))
            except GpusqError as error:
                self._skip(error)
                continue
            self.count += 1
            if len(held) == self.size:
                yield np.stack(held)
                held = []
        if held:
            yield np.stack(held)
        require_some(self.count, self.source)

    def _skip(self, error: GpusqError) -> None:
        self.skipped.append(f"{error.place}: {error.what}")
        require_few_skipped(self.skipped, self.source)


def require_few_skipped(skipped: Sequence[str], source: Counted) -> None:
    """Refuse data that is damaged as a whole; `skipped` names each unreadable sample that was met, and its fault.

    Raises:
        GpusqError: More than a tenth of the samples, and more than one.
    """
    if len(skipped) > max(1, _MAX_UNREADABLE * len(source)):
        raise GpusqError(
            f"at least {len(skipped)} of {counted(len(source), 'sample')} can't be read, the last is {skipped[-1]}",
            place=source.name,
            hint="mend or remove the damaged files",
        )


def require_some(count: int, source: DataSource) -> None:
    """Refuse data of which nothing was read.

    Raises:
        GpusqError: `count` is zero.
    """
    if count == 0:
        raise GpusqError("no sample could be read", place=source.name, hint=f"--calib takes {_KINDS}")


def filled(batch: npt.NDArray[np.float32], size: int | None) -> npt.NDArray[np.float32]:
    """A short batch, grown to a static batch size by repeating its last sample; None leaves it as it is."""
    if size is None or len(batch) == size:
        return batch
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def spread_indices(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spread, each once."""
    few = min(count, most)
    return [index * count // few for index in range(few)]


def evenly_filled(batch: npt.NDArray[np.float32], size: int | None) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """What is run at once to observe a batch, and how often each sample is in it.

    Too few samples for a static batch fill one alone each, so that whatever the layout every value comes equally often.
    """
    if size is None or len(batch) == size:
        yield batch, 1
        return
    for sample in batch:
        yield filled(sample[None], size), size


def open_source(text: str, preprocessing: Preprocessing, *, most: int | None = None) -> DataSource:
    """What `--calib` names; at most so many samples of it.

    Raises:
        GpusqError: Nothing there, nothing in it, or an array that the model can't take.
    """
    whole = _opened(text, preprocessing)
    return whole if most is None else at_most(whole, most)


def _opened(text: str, preprocessing: Preprocessing) -> DataSource:
    if text == RANDOM:
        return RandomNoise(preprocessing=preprocessing)
    path = Path(text)
    if not text or not os.path.lexists(path):
        if names_factory(text):
            return called(text, lambda items: source_from_iterable(items, preprocessing, name=text))
        raise GpusqError("no such file or folder", place=text, hint=f"--calib takes {_KINDS}")
    if path.is_dir():
        return _folder(text, preprocessing)
    read = _ARRAY_FILES.get(path.suffix.lower())
    if read is None or not path.is_file():
        raise GpusqError("not a source of calibration data", place=text, hint=f"--calib takes {_KINDS}")
    return _array_source(text, read(path), preprocessing)


def _folder(text: str, preprocessing: Preprocessing) -> ImageFolder:
    found = listed(Path(text))
    if not found.images:
        others = sum(found.others.values())
        kinds = some([suffix or "no suffix" for suffix in sorted(found.others, key=lambda name: -found.others[name])])
        among = f", but {counted(others, 'other file')} ({kinds})" if others else ""
        raise GpusqError(
            found.lacking or f"no images in the folder{among}",
            place=text,
            hint="save them as JPEG or PNG, or install that" if found.lacking else f"files with {_suffixes()}",
        )
    if preprocessing.is_image and not preprocessing.is_declared:
        raise GpusqError(
            f"nothing says how these images become the model's input: {preprocessing.origin}",
            place=text,
            hint="name the model's --arch, put its preprocessor_config.json beside it, or give .npy or .npz arrays",
        )
    return ImageFolder(name=printable(text), files=found.images, preprocessing=preprocessing, lacking=found.lacking)


def _suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))


def preprocessing_of_arrays(text: str | None) -> Preprocessing | None:
    """What `--calib` tells of the input of a model that declares nothing: the shape of a file's samples.

    A function tells it too, if it returns one array of all samples, or a data loader of batches.

    Returns:
        A preprocessing that does nothing, and says by its origin that it is none; None for anything else.

    Raises:
        GpusqError: The file is damaged, the function fails, or either gives no axis of samples and one of values.
    """
    read = _ARRAY_FILES.get(Path(text or "").suffix.lower())
    if text and read is not None and os.path.isfile(text):
        shape = read(Path(text)).shape
    elif text and names_factory(text) and not os.path.lexists(text):
        shape = called(text, batch_shape)
    else:
        return None
    if len(shape) < 2:
        found = f"an array of shape {list(shape)}" if shape else "items without an axis that counts them for sure"
        raise GpusqError(
            f"the model declares no input shape, and the data doesn't tell it: {found}",
            place=text,
            hint='give one array [N, ...] of all samples, or the module gpusq_preprocessing = {"shape": [...]}',
        )
    if 0 in shape:
        return None
    if len(shape) != 4:
        return preprocessing_of_shape(shape[1:], UNDECLARED)
    channels, height, width = shape[1:]
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    return Preprocessing(channels=channels, height=height, width=width, mean=zeros, std=ones, origin=UNDECLARED)


def source_from_iterable(items: Any, preprocessing: Preprocessing, *, name: str = "an iterable") -> ArrayFile:
    """Samples of an iterable of arrays, tensors, images, or the pairs and dicts of data loaders, read once.

    Raises:
        GpusqError: An item that holds nothing that the model takes, no item, or too many.
    """
    reader = ItemReader(preprocessing=preprocessing, name=name)
    values = spooled(reader.batches(items), preprocessing.sample_shape, name=name)
    return ArrayFile(name=f"{name} ({reader.remark})" if reader.remark else name, values=values)


def at_most(source: DataSource, most: int) -> DataSource:
    """At most so many samples, spread evenly over the whole; its name says how many of how many."""
    if most >= len(source):
        return source
    of = f"{source.name} ({most} of {counted(len(source), 'sample')})"
    return replace(spread_evenly(source, most), of=of)


def spread_evenly(source: DataSource, most: int) -> Selection:
    """At most so many samples, spread evenly over the whole."""
    return Selection(source=source, indices=spread_indices(len(source), most))


def remarks(source: DataSource) -> tuple[str, ...]:
    """What should be known of the samples: images that can't be decoded here, are turned, or have several frames."""
    indices: Sequence[int] = range(len(source))
    while isinstance(source, Selection):
        chosen = source.indices
        indices, source = [chosen[index] for index in indices], source.source
    if not isinstance(source, ImageFolder):
        return ()
    files = tuple(source.files[index] for index in indices)
    return tuple(filter(None, (source.lacking, frames_remark(files), turned_remark(files))))


def _array_source(name: str, values: npt.NDArray[Any], preprocessing: Preprocessing) -> ArrayFile:
    expected = preprocessing.sample_shape
    hint = _misfit(values, expected)
    if hint:
        wanted = f"float32 [N, {', '.join(map(str, expected))}]"
        raise GpusqError(
            f"the array is {values.dtype} {list(values.shape)}, the model takes {wanted}", place=name, hint=hint
        )
    return ArrayFile(name=printable(name), values=values)


def _misfit(values: npt.NDArray[Any], expected: tuple[int, ...]) -> str:
    """What to do about an array that the model can't take, by what is wrong with it; empty where nothing is."""
    shape, last = values.shape, (*expected[1:], expected[0])
    if shape[1:] == expected and values.dtype.kind == "f" and len(values):
        return ""
    image, axes = len(expected) == 3, len(expected) + 1
    faults = (
        (0 in shape, "there is no sample in it: was the file written before there were any?"),
        (values.dtype.kind in "iub", "whole numbers are no preprocessed images: save those as float32"),
        (values.dtype.kind != "f", "save the preprocessed images as float32"),
        (shape in (expected, last), "it is one sample without an axis N: give array[None], or better a few dozen"),
        (len(shape) < axes, f"stack the samples along a first axis: numpy.stack(samples), {axes} axes in all"),
        (len(shape) > axes, f"it has {len(shape)} axes, the input has {axes}: reshape it, first axis the samples"),
        (image and shape[1:] == last, "the channels come last: array.transpose(0, 3, 1, 2)"),
        (image and shape[1:2] != expected[:1], "the channels are another number: is the data of this model?"),
    )
    size = f"prepare the samples at {' x '.join(map(str, expected[1:] if image else expected))}"
    if image:
        size += "; or --arch-arg, where the model should be of another size"
    return next((hint for wrong, hint in faults if wrong), size)


_HELD_OUT_SHARE = 10
_HELD_OUT_MOST = 32
# Of few samples more than a tenth is kept apart: one or two prove little.
_HELD_OUT_LEAST, _LEAST_OF = 4, 4


def split_source(source: DataSource) -> tuple[DataSource, DataSource, bool]:
    """Samples to calibrate on, and samples to verify on.

    A tenth of them is kept apart, or 4 if that is more but no more than a quarter, 32 at most, spread over the whole.
    With fewer than ten samples the two are the same, and the flag is False.
    """
    if len(source) < _HELD_OUT_SHARE or source.synthetic:
        return source, source, False
    few = min(_HELD_OUT_LEAST, len(source) // _LEAST_OF)
    apart = min(max(len(source) // _HELD_OUT_SHARE, few), _HELD_OUT_MOST)
    chosen = spread_evenly(source, apart)
    rest = sorted({*range(len(source))} - {*chosen.indices})
    return Selection(source=source, indices=rest), chosen, True
