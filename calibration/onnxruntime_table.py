"""Calibration tables of ONNX Runtime: what `write_calibration_table` and `save_tensors_data` write.

1. `calibration.json`: `{"CLS": "TensorsData", "data": {TENSOR: {"lowest": …, "highest": …}}}`, in older releases
   `{TENSOR: [lowest, highest]}`. amax is the larger magnitude.
2. `calibration.cache`, lines of `TENSOR VALUE`, and `calibration.flatbuffers`, a table of the same strings. They keep
   the upper end alone, which is told: of a tensor that reaches further down the range is too small.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from gpusq_deploy.calibration.named_ranges import NamedRanges, mapping_in, not_ranges
from gpusq_deploy.errors import GpusqError

KIND = "ONNX Runtime calibration table"
_ONE_END = (
    "this form of ONNX Runtime's table keeps a tensor's upper end alone: give calibration.json, which has the lower one"
)
_NUMBER = struct.Struct("<I")
_OFFSET = struct.Struct("<i")
_SHORT = struct.Struct("<H")


def table_in_json(path: Path, data: bytes) -> NamedRanges | None:
    """The table that a JSON file holds; None where it holds something else.

    Raises:
        GpusqError: The table is of a graph that ONNX Runtime smoothed.
    """
    content = mapping_in(data)
    if content.get("CLS") == "TensorsData" or "calibration_method" in content:
        if content.get("smooth_quant") is True:
            raise GpusqError(
                "the table is of a graph that ONNX Runtime's SmoothQuant changed: its tensors are others",
                place=str(path),
                hint="calibrate without SmoothQuant, or here with --calib FOLDER",
            )
        inside = content.get("data")
        content = cast("dict[str, Any]", inside) if isinstance(inside, dict) else {}
    ends = {name: _ends(value) for name, value in content.items()}
    if not ends or all(end is None for end in ends.values()):
        return None
    return _named({name: math.nan if end is None else max(map(abs, end)) for name, end in ends.items()})


def table_in_text(path: Path, text: str) -> NamedRanges | None:
    """The table in lines of `TENSOR VALUE`; None where a line is none.

    Raises:
        GpusqError: No range in it can be used.
    """
    found: dict[str, float] = {}
    twice: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        name, space, value = line.strip().rpartition(" ")
        amax = _number(value)
        if not space or amax is None:
            return None
        if found.get(name, amax) != amax:
            twice[name] = f"it stands there twice with different values, the second time in line {number}"
        found[name] = amax
    return _named(found, twice, warning=_ONE_END) if found else None


def table_in_flatbuffers(path: Path, data: bytes) -> NamedRanges:
    """The table in the form of ONNX Runtime's `CalTableFlatBuffers`: a vector of pairs of strings.

    Raises:
        GpusqError: Damaged, or another file.
    """
    try:
        entries = _vector(data, _field(data, _NUMBER.unpack_from(data, 0)[0], 0))
        pairs = {_string(data, _field(data, at, 0)): _string(data, _field(data, at, 1)) for at in entries}
        return _named({name: float(value) for name, value in pairs.items()}, warning=_ONE_END)
    except (struct.error, ValueError, IndexError) as error:
        raise not_ranges(path, data) from error


def _named(found: Mapping[str, float], unusable: Mapping[str, str] | None = None, *, warning: str = "") -> NamedRanges:
    bad = {name: f"its range is {amax}" for name, amax in found.items() if not (math.isfinite(amax) and amax > 0)}
    bad |= unusable or {}
    good = {name: amax for name, amax in found.items() if name not in bad}
    return NamedRanges(kind=KIND, amax=good, unusable=bad, warning=warning)


def _ends(value: object) -> tuple[float, float] | None:
    """The two ends of a range; None where this is none, or one for each channel."""
    if isinstance(value, dict):
        held = cast("dict[str, Any]", value)
        value = [_scalar(held.get("lowest")), _scalar(held.get("highest"))]
    if not isinstance(value, list):
        return None
    numbers = cast("list[object]", value)
    if len(numbers) != 2 or not all(isinstance(end, (int, float)) for end in numbers):
        return None
    low, high = (float(str(end)) for end in numbers)
    return low, high


def _scalar(value: object) -> object:
    """The number of an encoded array of one; None of a longer one, as a range for each channel has."""
    if not isinstance(value, dict):
        return value
    held = cast("dict[str, object]", value).get("data")
    if not isinstance(held, list):
        return held
    inside = cast("list[object]", held)
    return inside[0] if len(inside) == 1 else None


def _number(text: str) -> float | None:
    try:
        return abs(float(text))
    except ValueError:
        return None


def _field(data: bytes, table: int, index: int) -> int:
    """Where a table's field points; its vtable lies before it."""
    vtable = table - _OFFSET.unpack_from(data, table)[0]
    if vtable < 0 or 4 + 2 * index >= _SHORT.unpack_from(data, vtable)[0]:
        raise ValueError("the field isn't there")
    at: int = table + _SHORT.unpack_from(data, vtable + 4 + 2 * index)[0]
    return at + int(_NUMBER.unpack_from(data, at)[0])


def _vector(data: bytes, at: int) -> list[int]:
    (count,) = _NUMBER.unpack_from(data, at)
    if 4 * count > len(data) - at:
        raise ValueError("the vector is longer than the file")
    places = [at + 4 + 4 * index for index in range(count)]
    return [place + int(_NUMBER.unpack_from(data, place)[0]) for place in places]


def _string(data: bytes, at: int) -> str:
    (size,) = _NUMBER.unpack_from(data, at)
    if at + 4 + size > len(data):
        raise ValueError("the text is longer than the file")
    return data[at + 4 : at + 4 + size].decode("utf-8")
