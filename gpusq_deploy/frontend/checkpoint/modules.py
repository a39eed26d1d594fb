"""Walking a torch module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch


def named_modules(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """The module itself, called "", and all below it; torch leaves the type partly open."""
    return cast("Iterator[tuple[str, torch.nn.Module]]", module.named_modules())
