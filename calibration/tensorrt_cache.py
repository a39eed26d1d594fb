"""Ranges out of a TensorRT calibration cache, for explicit Q/DQ: TensorRT 11 has no calibrators any more.

    TRT-8601-EntropyCalibration2
    input: 3caa54fc
    /blocks/blocks.0/norm1/LayerNormalization_output_0: 3d1020f4

A line holds a tensor of the ONNX file that was calibrated, and the scale as the bits of a big-endian float32; leading
zeros may be missing. amax = 127 · scale. A line whose scale is 0 or not finite matters where a layer needs its tensor.
The graph of today has other tensors, so they are found by these rules, the first that gives one answer:

1. The same name, where it is a path to a module or the model's input. A name without a path, such as `view_2` of
   torch's newer exporter, is given to another tensor by the next release: it counts where samples bear it out.
2. The same module and operator: torch's older exporter names tensors `/path/to/module/Operator_1_output_0`. Of several
   with one operator the last is the module's result.
3. The module's last step, where the old graph spelt an operator out: `Add` for a LayerNormalization, `Mul` for a Gelu.
4. The value before it, where a Reshape, Transpose or the like only moved values.
5. For a layer that reads the model's input: the only tensor without a path that isn't called like an output (a number,
   `output`, `logits`) or a constant (`onnx::…`, `….weight`).
"""

from __future__ import annotations

import difflib
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from gpusq_deploy.artifacts import CalibrationTable, TensorRange
from gpusq_deploy.calibration.named_ranges import LARGEST_FILE, NamedRanges, not_ranges, text_of_file
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import GraphLayer, module_of, value_name
from gpusq_deploy.text import some

_HEADER = re.compile(r"TRT-\d+-\w*Calibration\w*")
_PATH = re.compile(r"(?P<scope>/(?:.*/)?)(?P<operator>[A-Za-z]+)(?:_(?P<index>\d+))?_output_0")
_NO_INPUT = re.compile(r"\d+|output.*|logits.*|onnx::.*|.*\.(weight|bias)|\(Unnamed.*")
_MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_SPELT = {"LayerNormalization": "Add", "Gelu": "Mul"}
KIND = "TensorRT calibration cache"
# How far a range may be from what the samples reach: they are others than it was found on, and entropy clips.
_ABOVE, _BELOW = 2.0, 16.0


def is_tensorrt_cache(text: str) -> bool:
    """Whether a text begins as a cache does."""
    return text.startswith("TRT-")


def read_tensorrt_cache(path: Path) -> NamedRanges:
    """Read a cache; see the module.

    Raises:
        GpusqError: Not a cache, or a damaged one.
    """
    data = path.read_bytes() if path.stat().st_size <= LARGEST_FILE else b""
    return cache_in_text(path, text_of_file(path, data))


def cache_in_text(path: Path, text: str) -> NamedRanges:
    """The cache in a file's text.

    Raises:
        GpusqError: Not a cache, or a damaged one.
    """
    lines = text.splitlines()
    if not lines or not _HEADER.fullmatch(lines[0].strip()):
        raise not_ranges(path, text.encode())
    amax: dict[str, float] = {}
    unusable: dict[str, str] = {}
    first: dict[str, int] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        name, scale = _entry(line, path, number)
        if not math.isfinite(scale) or scale <= 0:
            unusable[name] = f"line {number}: the scale is {scale:g}" + (": the calibrator never saw it" * (scale == 0))
        elif amax.get(name, 127 * scale) != 127 * scale:
            unusable[name] = f"lines {first[name]} and {number} give it different scales"
        else:
            amax[name] = 127 * scale
            first[name] = number
    return NamedRanges(
        kind=KIND, amax={name: value for name, value in amax.items() if name not in unusable}, unusable=unusable
    )


class MatchedRanges(NamedTuple):
    """Ranges of the layers' inputs, and the layers whose input was matched by a name that is no evidence."""

    table: CalibrationTable
    doubtful: tuple[GraphLayer, ...] = ()


def table_from_cache(
    cache: NamedRanges, model: ir.Model, layers: Sequence[GraphLayer], *, source: str
) -> MatchedRanges:
    """Ranges of the layers' inputs, by the module's rules.

    Args:
        cache: Ranges by the names of another graph's tensors.
        model: The float graph.
        layers: Its layers that need a range.
        source: The cache's file.

    Raises:
        GpusqError: An input fits no tensor of the cache: names both, and the nearest ones.
    """
    values = {value_name(value): value for node in model.graph for value in node.outputs}
    inputs = {value_name(value) for value in model.graph.inputs}
    ranges: dict[str, TensorRange] = {}
    lost: list[GraphLayer] = []
    doubtful: list[GraphLayer] = []
    known = {**cache.amax, **dict.fromkeys(cache.unusable, 0.0)}
    for layer in layers:
        if layer.input in ranges:
            continue
        theirs = _match(known, values.get(layer.input), layer.input, is_input=layer.input in inputs)
        if theirs is None:
            lost.append(layer)
            continue
        if theirs in cache.unusable:
            place = f"{source}, tensor {theirs}, input of {layer.layer}"
            raise GpusqError(f"no range: {cache.unusable[theirs]}", place=place, hint="calibrate again, with data")
        if layer.input not in inputs and "/" not in theirs:
            doubtful.append(layer)
        origin = f"{cache.kind} {source}, tensor {theirs}"
        ranges[layer.input] = TensorRange(tensor=layer.input, layer=layer.layer, amax=known[theirs], origin=origin)
    if lost:
        raise _unmatched(known, lost, values, source)
    table = CalibrationTable(source=source, digest="", images=0, observer=cache.kind, ranges=tuple(ranges.values()))
    return MatchedRanges(table, tuple(doubtful))


def require_evidence(matched: MatchedRanges, *, source: str) -> None:
    """Refuse ranges that names alone speak for, where no samples can bear them out.

    Raises:
        GpusqError: Names the layers.
    """
    if matched.doubtful:
        names = some([f"{layer.layer} (reads {layer.input})" for layer in matched.doubtful])
        raise GpusqError(
            f"tensors of the file have the same names as ours, without a path to a module, and such names are given "
            f"anew by each export: {names}",
            place=source,
            hint="add --calib FOLDER: the ranges are then checked against samples; or calibrate anew, without --ranges",
        )


def require_borne_out(
    known: CalibrationTable, seen: Mapping[str, TensorRange], doubtful: Sequence[GraphLayer], *, source: str
) -> None:
    """Refuse ranges that samples contradict.

    Args:
        known: The ranges.
        seen: What samples showed, by tensor.
        doubtful: The layers in question.
        source: The ranges' file.

    Raises:
        GpusqError: Names the layers, their ranges, and what was seen.
    """
    ranges = known.by_tensor()
    wrong = [
        f"{layer.layer} ({ranges[layer.input].amax:.3g}, samples reach {seen[layer.input].amax:.3g})"
        for layer in doubtful
        if not seen[layer.input].amax / _BELOW <= ranges[layer.input].amax <= seen[layer.input].amax * _ABOVE
    ]
    if wrong:
        raise GpusqError(
            f"the ranges are of other tensors: numbered names coincide, and samples contradict them: {some(wrong)}",
            place=source,
            hint="calibrate anew, without --ranges; or calibrate an export whose names are paths to modules",
        )


def _entry(line: str, path: Path, number: int) -> tuple[str, float]:
    name, colon, text = line.rpartition(":")
    digits = text.strip()
    if not colon or not re.fullmatch(r"[0-9a-fA-F]{1,8}", digits):
        raise GpusqError("not NAME: HEX", place=f"{path}, line {number}", hint="the cache is damaged: copy it again")
    scale: float = struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0]
    return name.strip(), scale


def _match(cache: Mapping[str, float], value: ir.Value | None, name: str, *, is_input: bool) -> str | None:
    if name in cache and (is_input or "/" in name):
        return name
    if is_input:
        bare = [theirs for theirs in cache if "/" not in theirs and not _NO_INPUT.fullmatch(theirs)]
        return bare[0] if len(bare) == 1 else None
    numbered = name if name in cache else None
    while value is not None and (node := value.producer()) is not None:
        for operator in (node.op_type, _SPELT.get(node.op_type, "")):
            theirs = _last(cache, module_of(node), operator)
            if theirs is not None:
                return theirs
        if node.op_type not in _MOVES:
            break
        value = node.inputs[0]
    return numbered


def _last(cache: Mapping[str, float], module: str, operator: str) -> str | None:
    """The module's tensor by that operator with the highest number."""
    found = [
        (int(parts["index"] or 0), theirs)
        for theirs in cache
        if (parts := _PATH.fullmatch(theirs)) and parts["operator"] == operator and _module(parts["scope"]) == module
    ]
    return max(found)[1] if found else None


def _module(scope: str) -> str:
    """`/blocks/blocks.0/norm1/` is blocks.0.norm1: a container's name is repeated in its children's."""
    names: list[str] = []
    for part in scope.strip("/").split("/"):
        if names and part.startswith(f"{names[-1]}."):
            names[-1] = part
        elif part:
            names.append(part)
    return ".".join(names)


def _unmatched(
    cache: Mapping[str, float], lost: Sequence[GraphLayer], values: Mapping[str, ir.Value], source: str
) -> GpusqError:
    described: list[str] = []
    for layer in lost[:3]:
        value = values.get(layer.input)
        node = None if value is None else value.producer()
        path = layer.input if node is None else f"/{module_of(node).replace('.', '/')}/{node.op_type}_output_0"
        near = difflib.get_close_matches(path, list(cache), n=3, cutoff=0.0)
        described.append(f"{layer.layer} (reads {path}; nearest there: {', '.join(near)})")
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return GpusqError(
        f"{len(lost)} layers' inputs fit no tensor of the file: {'; '.join(described)}{more}",
        place=source,
        hint="write the ranges under this graph's names, or calibrate again with --calib FOLDER",
    )
