"""Ranges out of a TensorRT calibration cache, for explicit Q/DQ: TensorRT 11 has no calibrators any more.

    TRT-8601-EntropyCalibration2
    input: 3caa54fc
    /blocks/blocks.0/norm1/LayerNormalization_output_0: 3d1020f4

A line holds a tensor of the ONNX file that was calibrated, and the scale as the bits of a big-endian float32; leading
zeros may be missing. amax = 127 · scale. The graph of today has other tensors, so they are found by these rules, the
first that gives one answer:

1. The same name.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.artifacts import CalibrationTable, TensorRange
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import GraphLayer, module_of, value_name

_HEADER = re.compile(r"TRT-\d+-\w*Calibration\w*")
_PATH = re.compile(r"(?P<scope>/(?:.*/)?)(?P<operator>[A-Za-z]+)(?:_(?P<index>\d+))?_output_0")
_NO_INPUT = re.compile(r"\d+|output.*|logits.*|onnx::.*|.*\.(weight|bias)|\(Unnamed.*")
_MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_SPELT = {"LayerNormalization": "Add", "Gelu": "Mul"}
_LARGEST_FILE = 64 << 20


def is_tensorrt_cache(path: Path) -> bool:
    """Whether the file begins as a cache does."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"TRT-"
    except OSError:
        return False


def read_tensorrt_cache(path: Path) -> dict[str, float]:
    """Read amax by tensor. Tensors with scale 0 were never seen by the calibrator, and are left out.

    Raises:
        GpusqError: Not a cache, or a damaged one.
    """
    if path.stat().st_size > _LARGEST_FILE:
        raise GpusqError("too large for a calibration cache", place=str(path), hint="it should be kilobytes of text")
    try:
        lines = path.read_bytes().decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise GpusqError(f"not a calibration cache: {error}", place=str(path), hint="it should be text") from error
    if not lines or not _HEADER.fullmatch(lines[0].strip()):
        raise GpusqError(
            f"not a calibration cache: it starts with {lines[0][:40]!r}" if lines else "the cache is empty",
            place=str(path),
            hint="the first line should be like TRT-8601-EntropyCalibration2",
        )
    found = {name: amax for number, line in enumerate(lines[1:], 2) for name, amax in _entry(line, path, number)}
    if not found:
        raise GpusqError("the cache holds no range", place=str(path), hint="calibrate again, with data")
    return found


def table_from_cache(
    cache: Mapping[str, float], model: ir.Model, layers: Sequence[GraphLayer], *, source: str
) -> CalibrationTable:
    """Ranges of the layers' inputs, by the module's rules.

    Args:
        cache: See `read_tensorrt_cache`.
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
    for layer in layers:
        if layer.input in ranges:
            continue
        theirs = _match(cache, values.get(layer.input), layer.input, is_input=layer.input in inputs)
        if theirs is None:
            lost.append(layer)
            continue
        origin = f"TensorRT calibration cache {source}, tensor {theirs}"
        ranges[layer.input] = TensorRange(tensor=layer.input, layer=layer.layer, amax=cache[theirs], origin=origin)
    if lost:
        raise _unmatched(cache, lost, values, source)
    return CalibrationTable(
        source=source, digest="", images=0, observer="TensorRT calibration cache", ranges=tuple(ranges.values())
    )


def _entry(line: str, path: Path, number: int) -> Iterator[tuple[str, float]]:
    if not line.strip():
        return
    name, colon, text = line.rpartition(":")
    digits = text.strip()
    if not colon or not re.fullmatch(r"[0-9a-fA-F]{1,8}", digits):
        raise GpusqError("not NAME: HEX", place=f"{path}, line {number}", hint="the cache is damaged: copy it again")
    scale: float = struct.unpack(">f", bytes.fromhex(digits.zfill(8)))[0]
    if not math.isfinite(scale) or scale < 0:
        raise GpusqError(
            f"the scale is {scale}", place=f"{path}, line {number}", hint="the cache is damaged: copy it again"
        )
    if scale > 0:
        yield name.strip(), 127 * scale


def _match(cache: Mapping[str, float], value: ir.Value | None, name: str, *, is_input: bool) -> str | None:
    if name in cache:
        return name
    if is_input:
        bare = [theirs for theirs in cache if "/" not in theirs and not _NO_INPUT.fullmatch(theirs)]
        return bare[0] if len(bare) == 1 else None
    while value is not None and (node := value.producer()) is not None:
        for operator in (node.op_type, _SPELT.get(node.op_type, "")):
            theirs = _last(cache, module_of(node), operator)
            if theirs is not None:
                return theirs
        if node.op_type not in _MOVES:
            return None
        value = node.inputs[0]
    return None


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
        described.append(f"{layer.layer} (reads {path}; nearest in the cache: {', '.join(near)})")
    more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
    return GpusqError(
        f"{len(lost)} layers' inputs fit no tensor of the cache: {'; '.join(described)}{more}",
        place=source,
        hint="write the ranges under this graph's names, or calibrate again with --calib FOLDER",
    )
