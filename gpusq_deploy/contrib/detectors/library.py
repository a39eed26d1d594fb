"""torchvision, which is optional."""

from __future__ import annotations

from typing import Any

from gpusq_deploy.frontend import library


def torchvision_module(name: str) -> Any:
    """`name`, of torchvision.

    Raises:
        GpusqError: It isn't installed.
    """
    return library(name, hint="pip install torchvision")
