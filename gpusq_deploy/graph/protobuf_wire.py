"""As much of protobuf's wire format as it takes to walk an ONNX file without reading it.

onnx_ir maps external data alone: exported and foreign models, and bundles' model.onnx, hold their weights inline.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from gpusq_deploy.errors import GpusqError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}
_VARINT_BYTES = 10
_WINDOW = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One field: it spans `start`...`end` in the file, and its content `value`...`end`."""

    number: int
    kind: int
    start: int
    value: int
    end: int


class Reader:
    """A file that is read a window at a time.

    Walking it through a map would make resident what the kernel maps around the few bytes wanted: measured, 2 MB each.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._descriptor = stream.fileno()
        self._start, self._window = 0, b""
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`; fewer where the file ends."""
        inside = start - self._start
        if not 0 <= inside <= len(self._window) - (end - start):
            self._start, inside = start, 0
            self._window = os.pread(self._descriptor, max(end - start, _WINDOW), start)
        return self._window[inside : inside + end - start]


def fields(file: Reader, start: int, end: int) -> Iterator[Field]:
    """The fields of the message that spans `start`...`end`.

    Raises:
        GpusqError: The bytes are no message, or it was cut short.
    """
    while start < end:
        tag, value = _varint(file, start, end)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise _damaged(start)
        if kind == VARINT:
            _, after = _varint(file, value, end)
        elif kind == BYTES:
            size, value = _varint(file, value, end)
            after = value + size
        elif kind in _FIXED:
            after = value + _FIXED[kind]
        else:
            raise _damaged(start)
        if after > end:
            raise _damaged(start)
        yield Field(number=number, kind=kind, start=start, value=value, end=after)
        start = after


def rewritten(
    file: Reader, message: Field, inner: Mapping[int, Callable[[Field], bytes]], *, smallest: int = 4096
) -> bytes:
    """The message's content, with the given fields' contents replaced. Fields under `smallest` bytes are copied."""
    parts: list[bytes] = []
    for field in fields(file, message.value, message.end):
        rewrite = inner.get(field.number)
        if rewrite is None or field.kind != BYTES or field.end - field.value < smallest:
            parts.append(file.read(field.start, field.end))
        else:
            parts.append(bytes_field(field.number, rewrite(field)))
    return b"".join(parts)


def bytes_field(number: int, content: bytes) -> bytes:
    """A field that holds bytes, a text or a message."""
    return _number(number << 3 | BYTES) + _number(len(content)) + content


def text_field(number: int, text: str) -> bytes:
    """A field that holds a text."""
    return bytes_field(number, text.encode())


def number_field(number: int, value: int) -> bytes:
    """A field that holds an integer, not negative."""
    return _number(number << 3 | VARINT) + _number(value)


def _number(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _varint(file: Reader, start: int, end: int) -> tuple[int, int]:
    """The number at `start`, and where it ends."""
    value = 0
    for index, byte in enumerate(file.read(start, min(start + _VARINT_BYTES, end))):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, start + index + 1
    raise _damaged(start)


def _damaged(start: int) -> GpusqError:
    return GpusqError(
        f"not an ONNX model, or damaged: no protobuf field at byte {start}",
        hint="copy or download the file again, and compare its size or digest with the original's",
    )
