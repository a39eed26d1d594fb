"""Files that a command writes its result to: whole or not at all, and never over somebody else's."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from gpusq_deploy.cli.common import say
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import Value

_V = TypeVar("_V", bound="Value")
_OUR_SUITE = b"gpusq-"

summary_option = click.option(
    "--summary",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Append the verdict in Markdown, as to $GITHUB_STEP_SUMMARY.",
)
junit_option = click.option(
    "--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write the verdict as JUnit's XML, as for GitLab."
)


def check_target(target: Path, kind: type[_V], what: str) -> None:
    """Refuse, before any work, a file that can't be written, or that holds something else than an earlier result.

    `--json model.onnx` is one forgotten word away from destroying the model, so only our own files are replaced.

    Args:
        target: The file.
        kind: What it may hold.
        what: Those, in words.

    Raises:
        GpusqError: That is so.
    """
    from gpusq_deploy.artifacts import read_value, require_folder

    require_folder(target)
    if not target.exists():
        return
    try:
        read_value(target, kind)
    except GpusqError as error:
        raise _taken(target, what) from error


def check_junit(target: Path) -> None:
    """The same for JUnit's XML.

    Raises:
        GpusqError: The file can't be written, or wasn't written by us.
    """
    from gpusq_deploy.artifacts import require_folder

    require_folder(target)
    if target.exists():
        head = target.read_bytes()[:200]
        if head and not (head.startswith(b"<?xml") and _OUR_SUITE in head):
            raise _taken(target, "an earlier JUnit file of ours")


def save(data: bytes, target: Path) -> None:
    """Write a file beside its final name and rename it, so that nobody ever reads half of it.

    Raises:
        GpusqError: It can't be written.
    """
    try:
        _replace(target, data)
    except OSError as error:
        raise GpusqError(f"cannot write the file: {error.strerror}", place=str(target)) from error
    say(f"wrote {target}")


def append(text: str, target: Path) -> None:
    """Add to a file, as a job's summary is added to.

    Raises:
        GpusqError: It can't be written.
    """
    try:
        with target.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise GpusqError(f"cannot write the file: {error.strerror}", place=str(target)) from error
    say(f"added to {target}")


def _taken(target: Path, what: str) -> GpusqError:
    return GpusqError(
        f"the file exists and holds something else than {what}; it was left alone",
        place=str(target),
        hint="name another file, or remove it",
    )


def _replace(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        # mkstemp makes private files; give this one the mode that any other new file gets.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
