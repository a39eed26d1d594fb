"""Where calibration data comes from: a folder of images, a `.npy` array, or, only by name, random numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.calibration.images import SUFFIXES, Sample, image_files, load_image
from gpusq_deploy.errors import GpusqError

RANDOM = "random"
_RANDOM_SAMPLES = 16
_MAX_UNREADABLE = 0.1
_KINDS = "a folder of images, a .npy file of float32 [N, C, H, W] that is already preprocessed, or 'random'"


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
    """Images below a folder, preprocessed as the model declares."""

    name: str
    files: tuple[Path, ...]
    preprocessing: Preprocessing
    synthetic: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int) -> Sample:
        """Load image `index`."""
        return load_image(self.files[index], self.preprocessing)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayFile:
    """A `.npy` of float32 [N, C, H, W], mapped rather than loaded."""

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
        if self.count == 0:
            raise GpusqError("no sample could be read", place=self.source.name, hint=f"--calib takes {_KINDS}")

    def _skip(self, error: GpusqError) -> None:
        self.skipped.append(f"{error.place}: {error.what}")
        if len(self.skipped) > max(1, _MAX_UNREADABLE * len(self.source)):
            raise GpusqError(
                f"{len(self.skipped)} of {len(self.source)} samples can't be read, the last: {error.what}",
                place=error.place,
                hint="mend or remove the damaged files",
            ) from error


def filled(batch: npt.NDArray[np.float32], size: int | None) -> npt.NDArray[np.float32]:
    """A short batch, grown to a static batch size by repeating its last sample; None leaves it as it is."""
    if size is None or len(batch) == size:
        return batch
    return np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def open_source(text: str, preprocessing: Preprocessing) -> DataSource:
    """What `--calib` names.

    Raises:
        GpusqError: Nothing there, nothing in it, or an array that the model can't take.
    """
    if text == RANDOM:
        return RandomNoise(preprocessing=preprocessing)
    path = Path(text)
    if not text or not os.path.lexists(path):
        raise GpusqError("no such file or folder", place=text, hint=f"--calib takes {_KINDS}")
    if path.is_dir():
        files = image_files(path)
        if not files:
            raise GpusqError("no images in the folder", place=text, hint=f"files with {', '.join(sorted(SUFFIXES))}")
        return ImageFolder(name=text, files=files, preprocessing=preprocessing)
    if path.suffix == ".npy" and path.is_file():
        return _array_file(path, preprocessing)
    raise GpusqError("not a source of calibration data", place=text, hint=f"--calib takes {_KINDS}")


def _array_file(path: Path, preprocessing: Preprocessing) -> ArrayFile:
    reader: Any = np.lib.format  # numpy leaves open_memmap untyped; np.load would also open .npz archives
    try:
        values: npt.NDArray[Any] = reader.open_memmap(path, mode="r")
    except Exception as error:  # numpy's header reader raises what it likes on a damaged file
        raise GpusqError(
            f"not a .npy file, or damaged: {error}",
            place=str(path),
            hint="write it with numpy.save: float32 [N, C, H, W]",
        ) from error
    expected = (preprocessing.channels, preprocessing.height, preprocessing.width)
    if values.ndim != 4 or values.shape[1:] != expected or values.dtype.kind != "f" or not len(values):
        wanted = f"float32 [N, {', '.join(map(str, expected))}]"
        raise GpusqError(
            f"the array is {values.dtype} {list(values.shape)}, the model takes {wanted}",
            place=str(path),
            hint="save the preprocessed images as float32",
        )
    return ArrayFile(name=str(path), values=values)
