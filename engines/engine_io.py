"""The tensors of an engine, apart from any device: types, shapes, the profile's range, and buffer sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from gpusq_deploy.artifacts import Value
from gpusq_deploy.engines.session import TensorSpec
from gpusq_deploy.errors import GpusqError

# Names of TensorRT's DataType members; their integers change between versions.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}

Shapes = Mapping[str, tuple[int, ...]]


class ShapeRange(Value):
    """The shapes that an engine's profile allows for one input, dimension by dimension, and the one it is tuned for."""

    minimum: tuple[int, ...]
    best: tuple[int, ...]
    maximum: tuple[int, ...]


def dtype_from_trt(member: str, *, place: str) -> str:
    """The numpy name of a TensorRT type: HALF is float16.

    Raises:
        GpusqError: A type that no numpy array holds, such as FP8.
    """
    name = _DTYPES.get(member)
    if name is None:
        raise GpusqError(f"the engine has a tensor of type {member}, which can't be fed or read", place=place)
    return name


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type of a name, with ml_dtypes' bfloat16."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def check_ranges(ranges: Mapping[str, ShapeRange], shapes: Shapes, *, place: str) -> None:
    """Compare the shapes of feeds with the profile, and name every one that is out of it.

    Raises:
        GpusqError: At least one shape is out of range.
    """
    problems = [
        f"{name!r} {list(shape)} is outside {list(ranges[name].minimum)} to {list(ranges[name].maximum)}"
        for name, shape in shapes.items()
        if name in ranges and not _within(shape, ranges[name])
    ]
    if problems:
        raise GpusqError(
            "the engine wasn't built for these shapes: " + "; ".join(problems),
            place=place,
            hint="build again with --batch MIN:OPT:MAX around them",
        )


def fitting_profile(profiles: Sequence[Mapping[str, ShapeRange]], shapes: Shapes, *, place: str) -> int:
    """The optimisation profile that allows the shapes of feeds and is tuned for the nearest ones, from 0.

    Raises:
        GpusqError: None does.
    """
    fitting = [
        index
        for index, ranges in enumerate(profiles)
        if all(_within(shape, ranges[name]) for name, shape in shapes.items() if name in ranges)
    ]
    if fitting:
        return min(fitting, key=lambda index: _distance(profiles[index], shapes))
    if len(profiles) == 1:
        check_ranges(profiles[0], shapes, place=place)
    allowed = "; ".join(
        " and ".join(f"{name!r} {list(one.minimum)} to {list(one.maximum)}" for name, one in ranges.items())
        for ranges in profiles
    )
    got = ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes.items())
    raise GpusqError(
        f"none of the engine's {len(profiles)} profiles allows {got}: they allow {allowed}",
        place=place,
        hint="build again with a --batch MIN:OPT:MAX around them",
    )


def buffer_bytes(specs: tuple[TensorSpec, ...], shapes: Shapes, *, place: str) -> dict[str, int]:
    """Bytes of one buffer per tensor, for shapes without an open dimension.

    Raises:
        GpusqError: The runtime left a dimension open: its size depends on the values of the data.
    """
    still_open = [f"{spec.name!r} {list(shapes[spec.name])}" for spec in specs if min(shapes[spec.name], default=0) < 0]
    if still_open:
        raise GpusqError(f"sizes that depend on the data aren't supported: {', '.join(still_open)}", place=place)
    # A buffer of no bytes has no address.
    return {spec.name: max(1, math.prod(shapes[spec.name]) * numpy_dtype(spec.dtype).itemsize) for spec in specs}


def _distance(ranges: Mapping[str, ShapeRange], shapes: Shapes) -> int:
    """How far the shapes are from those that a profile is tuned for; equally far ones keep their order."""
    return sum(
        abs(size - best)
        for name, shape in shapes.items()
        if name in ranges
        for size, best in zip(shape, ranges[name].best, strict=True)
    )


def _within(shape: tuple[int, ...], allowed: ShapeRange) -> bool:
    if len(shape) != len(allowed.minimum):
        return False
    return all(low <= size <= high for low, size, high in zip(allowed.minimum, shape, allowed.maximum, strict=True))
