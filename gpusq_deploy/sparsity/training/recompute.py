"""Gradient checkpointing of a model's blocks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType] # of what it runs

from gpusq_deploy.sparsity.training.blocks import repeated_blocks


@contextmanager
def recomputed(module: torch.nn.Module) -> Generator[None]:
    """While it is active, a model's blocks keep no activations for the gradient, but run again for it."""
    blocks = [module.get_submodule(name) for name in repeated_blocks(module).all]
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
