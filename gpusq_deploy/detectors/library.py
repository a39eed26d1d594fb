"""torchvision, which is optional: imported late, and its absence told."""

from __future__ import annotations

import importlib
from typing import Any

from gpusq_deploy.errors import GpusqError


def torchvision_module(name: str) -> Any:
    """`name`, of torchvision.

    Raises:
        GpusqError: It isn't installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise GpusqError(f"cannot import {name}: {error}", place="--arch", hint="pip install torchvision") from error
