"""Libraries of models, which are optional: imported late, and their absence and failures told."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from gpusq_deploy.errors import GpusqError


def library(name: str, *, hint: str, place: str = "--arch") -> Any:
    """A module by its name.

    Args:
        name: As for an import.
        hint: What to do where it isn't there.
        place: Who named it.

    Raises:
        GpusqError: It can't be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise GpusqError(f"cannot import {name}: {error}", place=place, hint=hint) from error


@contextmanager
def current_folder() -> Generator[None]:
    """Python looks for modules in the current folder first, as it does for a script that lies there.

    Only while a user's own code is found and called: what it imports later comes from where it was.
    """
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have taken it out
            sys.path.remove(folder)


@contextmanager
def told(say: Callable[[Exception], str], *, place: str, hint: str) -> Generator[None]:
    """Others' code can raise anything: what it raises becomes a sentence.

    Args:
        say: The sentence.
        place: Whose code it is.
        hint: What to do.

    Raises:
        GpusqError: Something was raised; what is a GpusqError already says it better, and stays as it is.
    """
    try:
        yield
    except GpusqError:
        raise
    except Exception as error:
        raise GpusqError(say(error), place=place, hint=hint) from error
