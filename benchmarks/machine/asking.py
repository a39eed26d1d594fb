"""What programs and the kernel's files say, or None."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

Ask = Callable[[Sequence[str]], str | None]
"""Runs a program and answers what it prints; None where it is missing, fails or takes too long."""

ROOT = Path("/")
_SECONDS = 10


def ask(words: Sequence[str]) -> str | None:
    """Run a program for its standard output."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def first_line(words: Sequence[str]) -> str | None:
    """The first line of a program that goes on until it is ended; None as `ask`."""
    try:
        with subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            patience = threading.Timer(_SECONDS, process.kill)
            patience.start()
            line = process.stdout.readline()
            patience.cancel()
            process.terminate()
    except OSError:
        return None
    return line.decode(errors="replace") or None


def text_of(path: Path) -> str | None:
    """A file's text; None where it can't be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def number_in(text: str | None) -> float | None:
    """The number that a text begins with; None where there is none, as of `[N/A]`."""
    found = re.match(r"\s*(-?\d+(\.\d+)?)", text or "")
    return None if found is None else float(found[1])
