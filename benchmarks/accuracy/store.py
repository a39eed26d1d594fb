"""Predictions on disk as they come: JSON lines that a later run goes on from."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import msgspec

from gpusq_deploy.artifacts import Value, digest_of_bytes, digest_of_file, require_folder
from gpusq_deploy.errors import GpusqError


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    schema: Literal["gpusq.predictions/1"] = "gpusq.predictions/1"


class _Line(msgspec.Struct):
    subject: str
    data: str
    index: int
    prediction: msgspec.Raw


@dataclass(kw_only=True)
class Store:
    """Predictions of one data set, and where more go; without a file these go nowhere."""

    data: str
    known: Mapping[str, Mapping[int, bytes]]
    stream: IO[bytes] | None = None

    def of(self, subject: str, kind: type[Value]) -> dict[int, Any]:
        """What is known of a subject, by index; what isn't of the kind was another task's and is left out."""
        every = {index: _decoded(content, kind) for index, content in self.known.get(subject, {}).items()}
        return {index: found for index, found in every.items() if found is not None}

    def add(self, subject: str, records: Mapping[int, Any]) -> None:
        """Append a batch; it is on the disk when this returns.

        Raises:
            GpusqError: The disk refused.
        """
        if self.stream is None:
            return
        lines = [
            msgspec.json.encode({"subject": subject, "data": self.data, "index": index, "prediction": record}) + b"\n"
            for index, record in records.items()
        ]
        try:
            self.stream.write(b"".join(lines))
            self.stream.flush()
            os.fsync(self.stream.fileno())
        except OSError as error:
            raise GpusqError(
                f"cannot write the predictions: {error.strerror}", place=self.stream.name, hint="free some space"
            ) from error


def _decoded(content: bytes, kind: type[Value]) -> Value | None:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError:
        return None


@contextmanager
def opened_store(path: Path | None, data: str) -> Generator[Store]:
    """Read a file of predictions and append to it, or make one; None keeps nothing.

    A last line without its end was being written when a run was killed, and is cut off.

    Args:
        path: The file.
        data: The digest of the data, see `data_digest`.

    Raises:
        GpusqError: Another kind of file, which is left alone; one that another run writes; or it can't be written.
    """
    if path is None:
        yield Store(data=data, known={})
        return
    require_folder(path)
    if path.exists() and path.stat().st_size:
        _require_ours(path)
    try:
        stream = path.open("a+b")
    except OSError as error:
        raise GpusqError(f"cannot write the predictions: {error.strerror}", place=str(path)) from error
    with stream:
        _lock(stream, path)
        yield Store(data=data, known=_read(stream, data, path), stream=stream)


def data_digest(data: str, besides: Path, *told: str) -> str:
    """Of the names, sizes and times of the files that `data` names, and of what else decides the samples.

    Args:
        data: See `DataRequest`.
        besides: The file of predictions: it isn't data, wherever it lies.
        told: What else.

    Raises:
        GpusqError: `data` names no files: a factory's samples can't be recognised.
    """
    place = Path(data)
    folder = place if place.is_dir() else place.parent
    if not place.exists() and place.suffix != ".tar":
        raise GpusqError(
            "whether a factory's samples are the same again can't be told", place="--resume", hint="leave it out"
        )
    pattern = "*" if place.is_dir() else "*.tar"
    listing = [
        (path.relative_to(folder).as_posix(), (state := path.stat()).st_size, state.st_mtime_ns)
        for path in sorted(folder.rglob(pattern))
        if path.is_file() and path.resolve() != besides.resolve()
    ]
    return digest_of_bytes(msgspec.json.encode([listing, told]))


def file_digest(path: Path | None) -> str:
    """Of a file's content; empty for none, or for one that can't be read, which its reader tells."""
    return digest_of_file(path) if path is not None and path.is_file() else ""


def _require_ours(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            first = stream.readline(1 << 10)
        msgspec.json.decode(first, type=_Header)
    except OSError as error:
        raise GpusqError(f"cannot read the predictions: {error.strerror}", place=str(path)) from error
    except msgspec.MsgspecError as error:
        raise GpusqError(
            "the file holds something else than predictions; it was left alone",
            place=str(path),
            hint="name another file for --resume, or remove it",
        ) from error


def _lock(stream: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise GpusqError(
            "another run writes its predictions there", place=str(path), hint="wait for it, or name another file"
        ) from error


def _read(stream: IO[bytes], data: str, path: Path) -> dict[str, dict[int, bytes]]:
    stream.seek(0)
    known: dict[str, dict[int, bytes]] = {}
    whole = 0
    for number, line in enumerate(stream, start=1):
        if not line.endswith(b"\n"):
            break
        whole += len(line)
        if number > 1:
            found = _parsed(line, f"{path}, line {number}")
            if found.data == data:
                known.setdefault(found.subject, {})[found.index] = bytes(found.prediction)
    stream.truncate(whole)
    if not whole:
        stream.write(msgspec.json.encode(_Header()) + b"\n")
        stream.flush()
    return known


def _parsed(line: bytes, place: str) -> _Line:
    try:
        return msgspec.json.decode(line, type=_Line)
    except msgspec.MsgspecError as error:
        raise GpusqError(
            f"not a prediction: {error}", place=place, hint="remove the line, or name another file for --resume"
        ) from error
