"""Where calibration data comes from: images, arrays, an iterable, or, only by name, random numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts.arch import UNDECLARED, Preprocessing
from gpusq_deploy.calibration.arrays import made_by_factory, mapped_npy, mapped_npz, names_factory, spooled
from gpusq_deploy.calibration.images import SUFFIXES, Sample, image_files, load_image
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.wording import counted

RANDOM = "random"
_RANDOM_SAMPLES = 16
_MAX_UNREADABLE = 0.1
_ARRAY_FILES = {".npy": mapped_npy, ".npz": mapped_npz}
_KINDS = (
    "a folder of images; a .npy or .npz file of float32 [N, C, H, W], or package.module:factory that returns an "
    "iterable of such arrays, already preprocessed; or 'random'"
)


class DataSource(Protocol):
    """Samples by index; loading one may fail with a GpusqError that names its file."""

    @property
    def name(self) -> str:
        """Where it comes from, for the manifest."""
        ...

    @property
    def synthetic(self) -> bool:
        """True where no real data is in it."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """Sample `index` as float32 [C, H, W]."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFolder:
    """Images below a folder, preprocessed as the model declares.

    Raises:
        GpusqError: The model's input is no image.
    """

    name: str
    files: tuple[Path, ...]
    preprocessing: Preprocessing
    synthetic: bool = False

    def __post_init__(self) -> None:
        if not self.preprocessing.is_image:
            shape = ", ".join(map(str, _sample_shape(self.preprocessing)))
            raise GpusqError(
                f"the model takes float32 [N, {shape}]: no image has {self.preprocessing.channels} channels",
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
    """Preprocessed samples as one float array [N, C, H, W], mapped rather than loaded."""

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
        shape = (self.preprocessing.channels, self.preprocessing.height, self.preprocessing.width)
        return np.random.default_rng(index).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Some samples of another source, in the given order."""

    source: DataSource
    indices: Sequence[int]

    @property
    def name(self) -> str:
        """The whole source's name."""
        return self.source.name

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


def require_few_skipped(skipped: Sequence[str], source: DataSource) -> None:
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


def evenly_filled(batch: npt.NDArray[np.float32], size: int | None) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """What is run at once to observe a batch, and how often each sample is in it.

    Too few samples for a static batch fill one alone each, so that whatever the layout every value comes equally often.
    """
    if size is None or len(batch) == size:
        yield batch, 1
        return
    for sample in batch:
        yield filled(sample[None], size), size


def open_source(text: str, preprocessing: Preprocessing) -> DataSource:
    """What `--calib` names.

    Raises:
        GpusqError: Nothing there, nothing in it, or an array that the model can't take.
    """
    if text == RANDOM:
        return RandomNoise(preprocessing=preprocessing)
    path = Path(text)
    if not text or not os.path.lexists(path):
        if names_factory(text):
            return _array_source(text, made_by_factory(text, _sample_shape(preprocessing)), preprocessing)
        raise GpusqError("no such file or folder", place=text, hint=f"--calib takes {_KINDS}")
    if path.is_dir():
        files = image_files(path)
        if not files:
            raise GpusqError("no images in the folder", place=text, hint=f"files with {', '.join(sorted(SUFFIXES))}")
        return ImageFolder(name=text, files=files, preprocessing=preprocessing)
    read = _ARRAY_FILES.get(path.suffix)
    if read is None or not path.is_file():
        raise GpusqError("not a source of calibration data", place=text, hint=f"--calib takes {_KINDS}")
    return _array_source(text, read(path), preprocessing)


def preprocessing_of_arrays(text: str | None) -> Preprocessing | None:
    """What `--calib` tells of the input of a model that declares nothing: the shape of a file's samples.

    Returns:
        A preprocessing that does nothing, and says by its origin that it is none; None for what isn't such a file.

    Raises:
        GpusqError: The file is damaged.
    """
    read = _ARRAY_FILES.get(Path(text or "").suffix)
    if text is None or read is None or not os.path.isfile(text):
        return None
    shape = read(Path(text)).shape
    if len(shape) != 4 or 0 in shape:
        return None
    channels, height, width = shape[1:]
    zeros, ones = (0.0,) * channels, (1.0,) * channels
    return Preprocessing(channels=channels, height=height, width=width, mean=zeros, std=ones, origin=UNDECLARED)


def source_from_iterable(items: Iterable[Any], preprocessing: Preprocessing, *, name: str = "an iterable") -> ArrayFile:
    """Samples of any iterable of arrays or tensors, read once; see `arrays.spooled`."""
    return _array_source(name, spooled(items, _sample_shape(preprocessing), name=name), preprocessing)


def _sample_shape(preprocessing: Preprocessing) -> tuple[int, int, int]:
    return preprocessing.channels, preprocessing.height, preprocessing.width


def _array_source(name: str, values: npt.NDArray[Any], preprocessing: Preprocessing) -> ArrayFile:
    expected = _sample_shape(preprocessing)
    hint = _misfit(values, expected)
    if hint:
        wanted = f"float32 [N, {', '.join(map(str, expected))}]"
        raise GpusqError(
            f"the array is {values.dtype} {list(values.shape)}, the model takes {wanted}", place=name, hint=hint
        )
    return ArrayFile(name=name, values=values)


def _misfit(values: npt.NDArray[Any], expected: tuple[int, int, int]) -> str:
    """What to do about an array that the model can't take, by what is wrong with it; empty where nothing is."""
    channels, height, width = expected
    shape, last = values.shape, (height, width, channels)
    if shape[1:] == expected and values.dtype.kind == "f" and len(values):
        return ""
    faults = (
        (0 in shape, "there is no sample in it: was the file written before there were any?"),
        (values.dtype.kind in "iub", "whole numbers are no preprocessed images: save those as float32"),
        (values.dtype.kind != "f", "save the preprocessed images as float32"),
        (shape in (expected, last), "it is one sample without an axis N: give array[None], or better a few dozen"),
        (len(shape) != 4, "stack the samples along a first axis: numpy.stack(samples)"),
        (shape[1:] == last, "the channels come last: array.transpose(0, 3, 1, 2)"),
        (shape[1:2] != (channels,), "the channels are another number: is the data of this model?"),
    )
    size = f"prepare the samples at {height} x {width}; or --arch-arg, where the model should be of another size"
    return next((hint for wrong, hint in faults if wrong), size)
