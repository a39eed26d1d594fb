"""What layers are called, by the names of their weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gpusq_deploy.frontend.checkpoint.macs import PROJECTIONS, Layer
from gpusq_deploy.frontend.checkpoint.modules import named_modules


def layer_of(tensor: str) -> str:
    """The layer whose weight a tensor is, by their names: `attn.in_proj` for `attn.in_proj_weight`."""
    return tensor.removesuffix("_weight") if is_projection(tensor) else tensor.removesuffix(".weight")


def weight_of(module: torch.nn.Module, layer: str) -> torch.nn.Parameter:
    """The weight of a module's layer: of a Linear or Conv2d, or an input projection that an attention holds itself.

    Raises:
        AttributeError: The module has no such layer.
    """
    holder, _, last = layer.rpartition(".")
    if f"{last}_weight" in PROJECTIONS:
        parent = module.get_submodule(holder)
        if isinstance(parent, torch.nn.MultiheadAttention):
            return parent.get_parameter(f"{last}_weight")
    return module.get_parameter(f"{layer}.weight")


def is_projection(tensor: str) -> bool:
    """Whether a tensor is, by its name, a weight that a nn.MultiheadAttention holds itself."""
    return tensor.rpartition(".")[2] in PROJECTIONS


def is_layer_weight(tensor: str, shape: torch.Size) -> bool:
    """Whether a tensor is, by its name and shape, the weight of a Linear or Conv2d layer, or an input projection."""
    return len(shape) in {2, 4} if tensor.endswith(".weight") else is_projection(tensor) and len(shape) == 2


def weighted_layers(module: torch.nn.Module) -> Iterator[tuple[str, Layer]]:
    """Names of weights, and the modules that hold them."""
    for name, child in named_modules(module):
        prefix = f"{name}." if name else ""
        if isinstance(child, (torch.nn.Linear, torch.nn.Conv2d)):
            yield f"{prefix}weight", child
        elif isinstance(child, torch.nn.MultiheadAttention):
            yield from ((f"{prefix}{weight}", child) for weight in PROJECTIONS if getattr(child, weight) is not None)
