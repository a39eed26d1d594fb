"""The file of a history: JSON, one object a line, and lines are only ever added.

A line is written in one piece and under a lock, so that two jobs don't mix theirs. What a crash left half written is
closed by a line break before the next line, kept, and told whenever the file is read: nothing that somebody measured
is dropped quietly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from gpusq_deploy.artifacts import require_input, value_from_json
from gpusq_deploy.benchmarks.history.entry import HistoryEntry
from gpusq_deploy.errors import GpusqError


class History(NamedTuple):
    """What a file holds: its measurements in the order of lines, and of each line that is none, what is wrong."""

    entries: tuple[HistoryEntry, ...]
    damaged: tuple[str, ...]


def append_entries(path: Path, entries: Sequence[HistoryEntry]) -> None:
    """Add lines to a history; a file that isn't there is made.

    Raises:
        GpusqError: It can't be written, or holds something else than a history.
    """
    if path.exists() and path.stat().st_size and not read_history(path).entries:
        raise GpusqError(
            "the file exists and holds no line of a history; it was left alone",
            place=str(path),
            hint="name another file, or remove it",
        )
    lines = b"".join(msgspec.json.encode(entry, order="deterministic") + b"\n" for entry in entries)
    try:
        with path.open("a+b") as stream:
            _lock(stream.fileno())
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - 1))
            unfinished = size > 0 and stream.read(1) != b"\n"
            stream.write(b"\n" * unfinished + lines)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise GpusqError(f"cannot write the file: {error.strerror}", place=str(path)) from error


def read_history(path: Path) -> History:
    """Every line of a history.

    Raises:
        GpusqError: It can't be read.
    """
    require_input(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise GpusqError(f"cannot read the file: {error.strerror}", place=str(path)) from error
    read = [_read_line(path, number, line) for number, line in enumerate(lines, start=1)]
    entries = tuple(one for one in read if isinstance(one, HistoryEntry))
    return History(entries, tuple(one for one in read if isinstance(one, str)))


def _read_line(path: Path, number: int, line: bytes) -> HistoryEntry | str:
    """The measurement, or why it is none."""
    try:
        return value_from_json(line, HistoryEntry, place=f"{path}, line {number}")
    except GpusqError as error:
        return f"line {number} is no measurement and was left out: {error.what}"


def _lock(descriptor: int) -> None:
    """Until the file is closed. Windows has no such lock; there one line is still one write."""
    with suppress(ImportError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
