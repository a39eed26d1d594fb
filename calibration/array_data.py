"""Arrays of samples, mapped from a file rather than held in memory."""

from __future__ import annotations

import importlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import current_folder

# Of several arrays in an .npz, these are looked for, in this order.
NPZ_NAMES = ("images", "input")
_MOST_SAMPLES = 10_000
_MOST_PACKED = 100
_SMALL_ARRAY = 64 << 20
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")

Array = npt.NDArray[Any]
_Taken = TypeVar("_Taken")


def mapped_npy(path: Path) -> Array:
    """The array of a `.npy` file. Pickled objects are refused, not run.

    Raises:
        GpusqError: Not such a file, or damaged.
    """
    reader: Any = np.lib.format  # numpy leaves open_memmap untyped; np.load would also open .npz archives
    try:
        values: Array = reader.open_memmap(path, mode="r")
    except Exception as error:  # numpy's header reader raises what it likes on a damaged file
        raise GpusqError(
            f"not a .npy file, or damaged: {error}",
            place=str(path),
            hint="write it with numpy.save: float32 [N, ...], such as [N, C, H, W]",
        ) from error
    return values


def mapped_npz(path: Path) -> Array:
    """The only array of an `.npz` file, or the one called `images` or `input`; unpacked to a temporary file.

    Raises:
        GpusqError: Not such a file, damaged, or none of its arrays is meant for sure.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = _member(path, [name for name in archive.namelist() if name.endswith(".npy")])
            _require_no_bomb(archive.getinfo(member))
            with archive.open(member) as packed, tempfile.NamedTemporaryFile(suffix=".npy") as unpacked:
                shutil.copyfileobj(packed, unpacked)
                unpacked.flush()
                return mapped_npy(Path(unpacked.name))
    except GpusqError as error:
        raise GpusqError(error.what, place=str(path), hint=error.hint) from error
    # A damaged archive: what zipfile and zlib raise has no common base below Exception.
    except Exception as error:
        raise GpusqError(
            f"not an .npz file, or damaged: {error}",
            place=str(path),
            hint="write it with numpy.savez: images=float32 [N, ...], such as [N, C, H, W]",
        ) from error


def _require_no_bomb(entry: zipfile.ZipInfo) -> None:
    """Images pack to a tenth at best; a long array of nothing packs to a thousandth."""
    if entry.file_size > max(_SMALL_ARRAY, _MOST_PACKED * entry.compress_size):
        raise GpusqError(
            f"the array would grow to {entry.file_size:,} bytes from {entry.compress_size:,}: no images do",
            hint="if you trust it, save it as .npy",
        )


def names_factory(text: str) -> bool:
    """True for `package.module:factory`."""
    return _FACTORY.fullmatch(text) is not None


def called(text: str, take: Callable[[Any], _Taken]) -> _Taken:
    """What `take` makes of that which the function `package.module:factory`, called without arguments, returns.

    The module may lie in the current folder, as one of `--arch` may.

    Raises:
        GpusqError: No such function, or it fails, or what it returned does when it is read.
    """
    package, _, name = text.partition(":")
    try:
        with current_folder():
            factory: Any = getattr(importlib.import_module(package), name)
            return take(factory())
    except GpusqError:
        raise
    except Exception as error:  # a user's own code can raise anything
        raise GpusqError(
            f"the factory of calibration data fails: {type(error).__name__}: {error}",
            place=text,
            hint="it must be a function without arguments, in a module of the current folder or on PYTHONPATH, "
            "that returns an iterable",
        ) from error


def spooled(batches: Iterable[Array], sample: tuple[int, ...], *, name: str) -> Array:
    """Read an iterable once, to a temporary file that is mapped: memory doesn't grow with the number of samples.

    Args:
        batches: Of float samples [n, *sample]; see `items.Reader`.
        sample: Shape of one sample.
        name: Where it comes from, for errors.

    Returns:
        float32 [N, *sample].

    Raises:
        GpusqError: No sample at all, or more than 10,000.
    """
    count = 0
    with tempfile.TemporaryFile() as file:
        for batch in batches:
            count += len(batch)
            if count > _MOST_SAMPLES:
                raise GpusqError(
                    f"more than {_MOST_SAMPLES} samples: is it endless?",
                    place=name,
                    hint="a few hundred are plenty: cut it with itertools.islice",
                )
            _write(file, batch)
        if count == 0:
            raise GpusqError("it gives no sample", place=name, hint="is it an iterator that was used up already?")
        file.flush()
        return np.memmap(file, dtype=np.float32, mode="r", shape=(count, *sample))


def _member(path: Path, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    meant = next((f"{name}.npy" for name in NPZ_NAMES if f"{name}.npy" in names), None)
    if meant is None:
        listed = ", ".join(name.removesuffix(".npy") for name in names[:8]) or "none"
        raise GpusqError(
            f"it is not clear which of its arrays holds the samples: {listed}",
            place=str(path),
            hint=f"save one array alone, or call it {' or '.join(NPZ_NAMES)}",
        )
    return meant


def _write(file: IO[bytes], batch: Array) -> None:
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused when it is read
        rows = np.ascontiguousarray(batch, dtype=np.float32)
    file.write(rows.tobytes())
