"""What each layer of a model computes for one image, counted by running its shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

Layer = torch.nn.Linear | torch.nn.Conv2d | torch.nn.MultiheadAttention

# Weights that a nn.MultiheadAttention holds itself: of query, key and value together, or of each.
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def count_macs(module: torch.nn.Module, layers: Mapping[str, Layer], shape: tuple[int, ...]) -> Counter[str]:
    """Multiply-accumulates by the names of `layers`, on the meta device: nothing is computed, no weight is needed.

    Args:
        module: The model; it loses its weights.
        layers: Modules inside it, by the names of their weights. A nn.MultiheadAttention multiplies with its `out_proj`
            without calling it, so it is counted with the attention.
        shape: Of its input, one sample.

    Returns:
        Empty where the model can't be run without values.
    """
    counted: Counter[str] = Counter()

    def hook_for(name: str, layer: Layer) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], named: Any, output: Any) -> None:
            if isinstance(layer, torch.nn.MultiheadAttention):
                counted.update(_attention_macs(name, layer, _operands(inputs, named), output[0]))
            else:
                counted[name] += output.numel() * layer.weight[0].numel()

        return hook

    with torch.no_grad(), ExitStack() as stack:
        try:
            module.to("meta")
            for name, layer in layers.items():
                stack.callback(layer.register_forward_hook(hook_for(name, layer), with_kwargs=True).remove)
            module(torch.empty(1, *shape, device="meta"))
        except Exception:  # a model may look at its values in any way, and then this says nothing
            return Counter()
    return counted


def _operands(inputs: tuple[torch.Tensor, ...], named: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Query, key and value, however they were given."""
    return [*inputs[:3], *(named[name] for name in ("query", "key", "value")[len(inputs) :])]


def _attention_macs(
    tensor: str, attention: torch.nn.MultiheadAttention, operands: list[torch.Tensor], output: torch.Tensor
) -> dict[str, int]:
    """Of one of its projections, and with the first of them of its `out_proj`: each row makes `embed_dim` values."""
    prefix, dot, name = tensor.rpartition(".")
    chosen = operands if name == PROJECTIONS[0] else [operands[PROJECTIONS.index(name) - 1]]
    counts = {tensor: sum(operand.numel() for operand in chosen) * attention.embed_dim}
    if name in PROJECTIONS[:2]:
        counts[f"{prefix}{dot}out_proj.weight"] = output.numel() * attention.embed_dim
    return counts
