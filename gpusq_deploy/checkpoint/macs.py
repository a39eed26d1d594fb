"""What each layer of a model computes for one image, counted by running its shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import torch

Layer = torch.nn.Linear | torch.nn.Conv2d


def count_macs(module: torch.nn.Module, layers: Mapping[str, Layer], shape: tuple[int, ...]) -> Counter[str]:
    """Multiply-accumulates by the names of `layers`, on the meta device: nothing is computed, no weight is needed.

    Args:
        module: The model; it loses its weights.
        layers: Modules inside it.
        shape: Of its input, one sample.

    Returns:
        Empty where the model can't be run without values.
    """
    counted: Counter[str] = Counter()

    def hook_for(name: str, layer: Layer) -> Callable[..., None]:
        width = layer.weight[0].numel()

        def hook(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            counted[name] += output.numel() * width

        return hook

    with torch.no_grad(), ExitStack() as stack:
        try:
            module.to("meta")
            for name, layer in layers.items():
                stack.callback(layer.register_forward_hook(hook_for(name, layer)).remove)
            module(torch.empty(1, *shape, device="meta"))
        except Exception:  # a model may look at its values in any way, and then this says nothing
            return Counter()
    return counted
