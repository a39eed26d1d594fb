"""Names for layers that a module computes without calling a child: with a child's weight, or with its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from gpusq_deploy.frontend.checkpoint.layer_names import layer_of
from gpusq_deploy.frontend.checkpoint.macs import PROJECTIONS
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.graph import NAME_SCOPES, array_of, is_constant, module_of, origin

_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


def name_functional_layers(graph: ir.Graph, module: torch.nn.Module) -> int:
    """Give products the names of the layers whose weights they read, as checkpoints, recipes and ranges name them.

    torchvision's Swin and torch's MultiheadAttention hand weights of children to functions, and the exporter records
    the parent alone. Weights are compared, for the exporter keeps no names of those that it transposes.

    1. A MatMul or Gemm by a constant matrix, recorded under a module that has Linear layers for children, gets the name
       of the child whose weight that matrix is, as it is or transposed.
    2. Recorded under a torch.nn.MultiheadAttention, it gets the name of the input projection that it is, or is a part
       of: `attention.in_proj`, where the parameter is `attention.in_proj_weight`. Several parts have one name.
    3. Where several children or projections have that weight, or none, nothing changes.
    4. A Conv that the exporter fused with the BatchNorm behind it, and recorded under that, gets back the name of the
       convolution, which its weight has kept.

    Returns:
        Products that were named.
    """
    named = 0
    for node in graph:
        child = _fused(node, module) if node.op_type == "Conv" else ""
        if node.op_type in {"MatMul", "Gemm"}:
            child = _child(node, module)
        if child:
            *scopes, operator = ast.literal_eval(node.metadata_props[NAME_SCOPES])
            kept = scopes[:-1] if node.op_type == "Conv" else scopes
            node.metadata_props[NAME_SCOPES] = repr([*kept, child, operator])
            named += 1
    return named


def _fused(node: ir.Node, module: torch.nn.Module) -> str:
    """The name of the convolution that was fused with a BatchNorm; empty where it wasn't."""
    recorded, (weight, _) = module_of(node), origin(node.inputs[1])
    name = "" if weight is None or weight.name is None else weight.name.removesuffix(".weight")
    norm, conv = _submodule(module, recorded), _submodule(module, name)
    return name if name != recorded and isinstance(norm, _NORMS) and isinstance(conv, torch.nn.Conv2d) else ""


def _submodule(module: torch.nn.Module, name: str) -> torch.nn.Module | None:
    """None where the exporter made the name up."""
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _child(node: ir.Node, module: torch.nn.Module) -> str:
    """The name of the only layer below the product's module with its weight; empty where there is none."""
    parent = module_of(node)
    weight, _ = origin(node.inputs[1])
    if not parent or weight is None or not is_constant(weight) or weight.shape is None:
        return ""
    found = _submodule(module, parent)
    if found is None:
        return ""
    shape = weight.shape.numpy()
    fitting = [(name, rows) for name, rows in _layers(found) if tuple(rows.shape) in (shape, shape[::-1])]
    if not fitting:
        return ""
    values = array_of(weight)
    same = {name for name, rows in fitting if _holds(rows, values)}
    return f"{parent}.{same.pop()}" if len(same) == 1 else ""


def _layers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Layers that a module may compute itself, and their weights, parts of projections among them."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.Linear):
            yield name, child.weight
    if isinstance(module, torch.nn.MultiheadAttention):
        for name in PROJECTIONS:
            weight = getattr(module, name)
            if weight is not None:
                parts = (weight, *_parts(weight)) if name == PROJECTIONS[0] else (weight,)
                yield from ((layer_of(name), part) for part in parts)


def _parts(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """Query, key and value; and key with value, which is one product where they read one input."""
    width = len(weight) // 3
    yield from (weight[start : start + width] for start in range(0, len(weight), width))
    yield weight[width:]


def _holds(rows: torch.Tensor, values: npt.NDArray[Any]) -> bool:
    weight = array_from_tensor(rows.detach())
    return np.array_equal(weight, values) or np.array_equal(weight.T, values)
