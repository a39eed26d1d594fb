"""How a command ends that doesn't end well: the exit code, the sentence, and the same as JSON."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import click

import gpusq_deploy
from gpusq_deploy.cli.session import session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import one_line

USAGE = 2
FAILED = GpusqError.exit_code
NO_ENGINE = 6
# sysexits.h: EX_SOFTWARE. No verdict has it, so that CI never reads a bug as one.
BUG = 70
INTERRUPTED = 130
# What a shell reports of a program that SIGPIPE ended.
PIPE_CLOSED = 141

# What docs/jetson.md leaves out on a device: its modules, and the packages that have them.
NOT_ON_DEVICES = {"torch": "torch", "onnxscript": "onnxscript", "PIL": "pillow", "safetensors": "safetensors"}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_PACKAGE = Path(gpusq_deploy.__file__).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """Why a command failed, and its exit code."""

    code: int
    what: str
    place: str | None = None
    hint: str | None = None

    def error_json(self) -> dict[str, Any]:
        """For the one object on stdout."""
        return {"error": {"what": self.what, "place": self.place, "hint": self.hint}, "exit_code": self.code}

    def __str__(self) -> str:
        return f"error: {GpusqError(self.what, place=self.place, hint=self.hint)}"


def end(error: BaseException) -> int:
    """Say on stderr why a command failed, on stdout too where that is to be JSON; the exit code."""
    ending = _ending(error)
    if ending.code == BUG or (session.verbose and isinstance(error, GpusqError)):
        ending = _with_traceback(ending, error)
    if isinstance(error, click.ClickException):
        error.show()
    else:
        click.echo(str(ending), err=True)
    if session.json:
        click.echo(json.dumps(ending.error_json(), indent=2))
    return ending.code


def abandon_streams() -> None:
    """Nobody reads any more: let Python's own last flush go nowhere, so that it has nothing to complain of."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # not a file, as in tests
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())


def _ending(error: BaseException) -> Ending:
    if isinstance(error, GpusqError):
        return Ending(code=error.exit_code, what=error.what, place=error.place, hint=error.hint)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = None if context is None else f"{context.command_path} --help"
        return Ending(code=USAGE, what=one_line(ValueError(error.format_message())), hint=hint)
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return Ending(code=INTERRUPTED, what="interrupted: no output is half written")
    return _of_the_machine(error) or _of_a_bug(error)


def _of_the_machine(error: BaseException) -> Ending | None:
    """What the user can mend though no code of ours foresaw it."""
    if isinstance(error, ModuleNotFoundError):
        package = NOT_ON_DEVICES.get((error.name or "").partition(".")[0])
        if package is not None:
            what = f"{package} isn't installed here, and this command reads a checkpoint or images with it"
            return Ending(
                code=FAILED, what=what, hint=f"pip install {package}; the engines of a bundle are built without it"
            )
    if isinstance(error, MemoryError):
        return Ending(code=FAILED, what="memory ran out", hint="close other programs, or use a machine with more")
    if isinstance(error, OSError) and error.errno in _FULL:
        return Ending(
            code=FAILED, what=f"nothing can be written: {error.strerror}", place=error.filename, hint="free some space"
        )
    return None


def _of_a_bug(error: BaseException) -> Ending:
    kind = type(error).__name__
    said = one_line(error)
    return Ending(
        code=BUG,
        what=f"this is a bug in gpusq-deploy {gpusq_deploy.__version__}: {kind}{': ' if said else ''}{said}",
        place=_last_of_ours(error.__traceback__),
    )


def _with_traceback(ending: Ending, error: BaseException) -> Ending:
    """The traceback goes to stderr where that was asked for, and of a bug else into a file, which the hint names."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    file = None if session.verbose or session.debug else _report_file(text)
    if file is None:
        click.echo(text, err=True, nl=False)
    if ending.code != BUG:
        return ending
    hold = "the traceback above" if file is None else f"{file}, which holds the traceback and all versions"
    return Ending(code=BUG, what=ending.what, place=ending.place, hint=f"report it, with {hold}")


def _report_file(text: str) -> str | None:
    from gpusq_deploy.engines import all_versions

    lines = [*(f"{name} {version}" for name, version in all_versions().items()), "", " ".join(sys.argv), "", text]
    try:
        handle, name = tempfile.mkstemp(prefix="gpusq-bug-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write("\n".join(lines))
    except OSError:
        return None
    return name


def _last_of_ours(trace: TracebackType | None) -> str | None:
    frames = [frame for frame in traceback.extract_tb(trace) if _PACKAGE in Path(frame.filename).parents]
    if not frames:
        return None
    last = frames[-1]
    return f"{Path(last.filename).relative_to(_PACKAGE)}, line {last.lineno}, in {last.name}"
