"""Ranges by the names of tensors in somebody else's ONNX file, and what can be told of a file that holds none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from gpusq_deploy.errors import GpusqError

TAKEN = (
    "gpusq-calibrate's JSON, a TensorRT calibration cache, or ONNX Runtime's calibration.json, .cache or .flatbuffers"
)
LARGEST_FILE = 64 << 20
# Encodings by the mark that a file begins with; PowerShell's `>` writes the second.
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_BEGINNINGS = {
    b"PK\x03\x04": "a zip archive, as torch.save and numpy's savez write",
    b"\x93NUMPY": "an array of numpy",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"\x80": "a pickle",
    b"\x08": "an ONNX model, it seems",
    b"ftrt": "a TensorRT engine",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedRanges:
    """Ranges of tensors that were found in another graph.

    Attributes:
        kind: Who wrote them.
        amax: |x| <= amax, by the tensor's name there; above 0 and finite.
        unusable: Why a tensor has none, and in which line of the file.
        warning: What is to be known of all of them; empty where nothing is.
    """

    kind: str
    amax: Mapping[str, float]
    unusable: Mapping[str, str] = field(default_factory=dict[str, str])
    warning: str = ""


def text_of_file(path: Path, data: bytes) -> str:
    """The file's text, whatever mark of its encoding it begins with.

    Raises:
        GpusqError: It is no text.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise not_ranges(path, data) from error


def not_ranges(path: Path, data: bytes) -> GpusqError:
    """The error for a file that holds no ranges: what it is, as far as its beginning tells, and what is taken."""
    return GpusqError(f"{_what_it_is(data)}, not a file of ranges", place=str(path), hint=f"give {TAKEN}")


def _what_it_is(data: bytes) -> str:
    if not data:
        return "the file is empty"
    for mark, what in _BEGINNINGS.items():
        if data.startswith(mark):
            return what
    content = mapping_in(data)
    if "schema" in content:
        return f"a file of {str(content['schema'])[:40]}"
    if content:
        return f"JSON with {', '.join(map(repr, [*content][:3]))}"
    return f"it starts with {data[:40].decode('utf-8', 'replace').splitlines()[0]!r}"


def mapping_in(data: bytes) -> dict[str, Any]:
    """The JSON object that a file holds; an empty one where it holds none."""
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return {}
    try:
        content: object = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}
