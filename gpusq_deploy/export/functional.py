"""Names for layers that a module computes with a child's weight, without calling the child."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from gpusq_deploy.checkpoint.tensors import array_from_tensor
from gpusq_deploy.graph.layers import origin
from gpusq_deploy.graph.values import NAME_SCOPES, array_of, is_constant, module_of


def name_functional_layers(graph: ir.Graph, module: torch.nn.Module) -> int:
    """Give products the names of the Linear layers whose weights they read, as recipes, masks and ranges name them.

    torchvision's Swin and torch's MultiheadAttention hand weights of children to functions, and the exporter records
    the parent alone. Weights are compared, for the exporter keeps no names of those that it transposes.

    1. A MatMul or Gemm by a constant matrix, recorded under a module that has Linear layers for children, gets the name
       of the child whose weight that matrix is, as it is or transposed.
    2. Where several children have that weight, or none, nothing changes.

    Returns:
        Products that were named.
    """
    named = 0
    for node in graph:
        if node.op_type not in {"MatMul", "Gemm"}:
            continue
        child = _child(node, module)
        if child:
            *scopes, operator = ast.literal_eval(node.metadata_props[NAME_SCOPES])
            node.metadata_props[NAME_SCOPES] = repr([*scopes, child, operator])
            named += 1
    return named


def _child(node: ir.Node, module: torch.nn.Module) -> str:
    """The name of the only child with the product's weight; empty where there is none."""
    parent = module_of(node)
    weight, _ = origin(node.inputs[1])
    if not parent or weight is None or not is_constant(weight) or weight.shape is None:
        return ""
    shape = weight.shape.numpy()
    shapes = (shape, shape[::-1])
    fitting = [(name, child) for name, child in _linears(module, parent) if tuple(child.weight.shape) in shapes]
    if not fitting:
        return ""
    values = array_of(weight)
    same = [name for name, child in fitting if _holds(child, values)]
    return f"{parent}.{same[0]}" if len(same) == 1 else ""


def _linears(module: torch.nn.Module, parent: str) -> Iterator[tuple[str, torch.nn.Linear]]:
    try:
        found = module.get_submodule(parent)
    except AttributeError:  # the exporter's own names
        return
    for name, child in found.named_children():
        if isinstance(child, torch.nn.Linear):
            yield name, child


def _holds(child: torch.nn.Linear, values: npt.NDArray[Any]) -> bool:
    weight = array_from_tensor(child.weight.detach())
    return np.array_equal(weight, values) or np.array_equal(weight.T, values)
