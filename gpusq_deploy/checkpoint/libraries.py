"""Libraries of models, which are optional: imported late, and their absence told."""

from __future__ import annotations

import importlib
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
