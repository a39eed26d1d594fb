"""The weighted layers of a torch module, as the 2:4 check sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import torch

from gpusq_deploy.artifacts.plan import LayerKind
from gpusq_deploy.numerics.sparsity import rows_from_conv
from gpusq_deploy.sparsity import LayerWeight


def layer_weights(module: torch.nn.Module) -> Iterator[LayerWeight]:
    """Linear and Conv2d weights in the module's order, float32, as rows along the contracted axis."""
    children: dict[str, Any] = dict(module.named_modules())
    for name, child in children.items():
        if isinstance(child, torch.nn.Linear):
            rows = _array(child.weight)
            yield LayerWeight(layer=name, tensor=f"{name}.weight", kind="linear", rows=rows)
        elif isinstance(child, torch.nn.Conv2d):
            rows = rows_from_conv(_array(child.weight))
            yield LayerWeight(layer=name, tensor=f"{name}.weight", kind=_conv_kind(child), rows=rows)


def _array(weight: torch.Tensor) -> npt.NDArray[Any]:
    return weight.detach().float().numpy()


def _conv_kind(conv: torch.nn.Conv2d) -> LayerKind:
    patches = tuple(conv.kernel_size) == tuple(conv.stride) and conv.groups == 1 and max(conv.kernel_size) > 1
    return "patch_embed" if patches else "conv"
