"""Gradient checkpointing of a model's blocks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType] # of what it runs


def repeated_blocks(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of every Sequential and ModuleList that holds two or more of one class, the outermost ones."""
    found: list[torch.nn.Module] = []
    for child in module.children():
        members = list(child.children())
        listed = isinstance(child, (torch.nn.Sequential, torch.nn.ModuleList))
        if listed and len(members) > 1 and len({type(member) for member in members}) == 1:
            found += members
        else:
            found += repeated_blocks(child)
    return found


@contextmanager
def recomputed(blocks: list[torch.nn.Module]) -> Generator[None]:
    """While it is active, blocks keep no activations for the gradient, but run again for it."""
    forwards = [(block, vars(block).get("forward")) for block in blocks]
    for block in blocks:
        # A module's own attribute goes before its class's method.
        setattr(block, "forward", partial(_run, block.forward))  # noqa: B010 - mypy refuses to assign a method
    try:
        yield
    finally:
        for block, own in forwards:
            if own is None:
                delattr(block, "forward")
            else:
                setattr(block, "forward", own)  # noqa: B010 - the same


def _run(forward: Any, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
