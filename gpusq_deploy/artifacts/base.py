"""What all values share: frozen, slotted, keyword-only, and one strict JSON form.

`msgspec.Struct` rather than a dataclass, because it also decodes: types are checked, unknown fields refused, and
the path of the offending field is named. Every file that we write carries a `schema` field.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import msgspec.toml
from typing_extensions import dataclass_transform

from gpusq_deploy.errors import GpusqError

_V = TypeVar("_V", bound="Value")


class _Strict(msgspec.StructMeta):
    """Frozen, keyword-only and closed, without saying so in every class: msgspec doesn't inherit `kw_only`."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], *, frozen: bool = True) -> Any:
        return super().__new__(cls, name, bases, namespace, frozen=frozen, kw_only=True, forbid_unknown_fields=True)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Value(msgspec.Struct, metaclass=_Strict, frozen=True):
    """Base of every value that flows between rooms or is written to a bundle."""

    @classmethod
    def upgraded(cls, data: bytes) -> bytes:
        """JSON that an older version wrote, in the form of today; what isn't JSON is handed back, to be refused."""
        return data


def json_from_value(value: Value) -> bytes:
    """Canonical JSON: fields in declaration order, two-space indent, a final newline; equal values, equal bytes."""
    encoded = msgspec.json.encode(value, order="deterministic", enc_hook=plain_from_scalar)
    return msgspec.json.format(encoded, indent=2) + b"\n"


def builtins_from_value(value: object) -> Any:
    """Dicts, lists and plain scalars, as `json_from_value` would write them; of one value or of a list of them."""
    return msgspec.to_builtins(value, enc_hook=plain_from_scalar)


def plain_from_scalar(scalar: Any) -> Any:
    """The Python number of a numpy scalar: numpy's functions return either, and which one differs by version.

    Raises:
        NotImplementedError: Not a numpy scalar.
    """
    # By name, since values need no numpy.
    if type(scalar).__module__ == "numpy" and hasattr(scalar, "item"):
        return scalar.item()
    raise NotImplementedError(f"a {type(scalar).__name__} has no JSON form")


def value_from_json(data: bytes, kind: type[_V], *, place: str) -> _V:
    """Decode strictly.

    Args:
        data: JSON text, UTF-8.
        kind: The value type expected.
        place: The file or field it came from, for the error.

    Raises:
        GpusqError: Not JSON, wrong types, an unknown field, or another schema.
    """
    try:
        return msgspec.json.decode(kind.upgraded(data), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise GpusqError(
            f"not a valid {kind.__name__} file: {error}",
            place=place,
            hint="the file is damaged or was written by another version of gpusq-deploy; make it again",
        ) from error


def read_value(path: Path, kind: type[_V]) -> _V:
    """Read one value from a file; see `value_from_json`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise GpusqError(
            f"cannot read the file: {error.strerror}", place=str(path), hint="check its path and its permissions"
        ) from error
    return value_from_json(data, kind, place=str(path))


def require_input(path: Path) -> None:
    """Refuse, before any work, an input that isn't there or can't be read: one sentence for all commands.

    Raises:
        GpusqError: Says which.
    """
    if not os.path.lexists(path):
        raise GpusqError("no such file or folder", place=str(path), hint="check the path")
    if not os.path.exists(path):
        raise GpusqError("the link leads nowhere", place=str(path), hint="check the path")
    if not os.access(path, os.R_OK):
        raise GpusqError("cannot read it: permission denied", place=str(path), hint="check its permissions")


def require_folder(out: Path) -> None:
    """Refuse, before any work, an output whose folder isn't there or can't be written.

    Raises:
        GpusqError: Says which, and what mends it; a file where a folder must be is told from a folder that is missing.
    """
    parent = out.absolute().parent
    if not parent.is_dir():
        blocking = next((path for path in (parent, *parent.parents) if os.path.lexists(path)), parent)
        if not blocking.is_dir():
            raise GpusqError(
                "a file lies where the folder to write into would be",
                place=str(blocking),
                hint="name another place, or move that file away",
            )
        raise GpusqError(
            "the folder to write into does not exist", place=str(parent), hint=shlex.join(["mkdir", "-p", str(parent)])
        )
    if not os.access(parent, os.W_OK):
        raise GpusqError(
            "the folder to write into is not writable",
            place=str(parent),
            hint="name another place, or change its permissions",
        )


def value_from_toml(text: str, kind: type[_V], *, place: str, what: str, hint: str | None = None) -> _V:
    """Decode strictly what a user wrote.

    Args:
        text: TOML.
        kind: The value type expected.
        place: The file, for the error.
        what: What the file should be, with its article.
        hint: Where its grammar is.

    Raises:
        GpusqError: Not TOML, wrong types, or an unknown field.
    """
    try:
        return msgspec.toml.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise GpusqError(f"not {what}: {error}", place=place, hint=hint) from error
    except (ValueError, RecursionError) as error:  # tomllib's own, and a number of more digits than Python reads
        raise GpusqError(f"not TOML: {error}", place=place, hint=hint) from error


@contextmanager
def written_whole(path: Path) -> Generator[Path, None, None]:
    """A name beside `path` to write to; it replaces `path` if all went well, and is removed if not.

    Its content is on the disk before its name is, so that a crash leaves the old file or the new one.

    Raises:
        OSError: The disk refused.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        with suppress(OSError):  # a folder that can't be read, or a file system that syncs none
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or leave what is there as it is; see `written_whole`.

    Raises:
        OSError: The disk refused.
    """
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def digest_of_bytes(data: bytes | memoryview) -> str:
    """`sha256:` and the hexadecimal digest."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """Digest of a file's content, read in pieces."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            total.update(piece)
    return "sha256:" + total.hexdigest()
