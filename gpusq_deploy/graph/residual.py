"""The residual adds of a graph: what skips a block, and what the block adds to it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from gpusq_deploy.graph.values import is_constant, module_of, node_name, value_name

_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "Attention"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Residual:
    """One residual add.

    Attributes:
        module: The torch module; the node's name where there is none.
        node: The Add.
        skip: The tensor that it takes unchanged, in front of a Q/DQ pair where there is one.
        branch: The tensor that was computed from it.
        quantized: Whether one of the two comes out of a DequantizeLinear.
    """

    module: str
    node: str
    skip: str
    branch: str
    quantized: bool


def find_residuals(model: ir.Model) -> tuple[Residual, ...]:
    """Residual adds in graph order.

    1. An Add of two computed tensors of one shape, of which one was computed from the other, through a matrix product
       or a convolution.
    2. Not found: an add whose skipping side has a product of its own, as where a ResNet's stage changes its size.
    """
    found = (_residual(node) for node in model.graph if node.op_type == "Add")
    return tuple(residual for residual in found if residual is not None)


def _residual(node: ir.Node) -> Residual | None:
    inputs = [value for value in node.inputs if value is not None and not is_constant(value)]
    if len(inputs) != 2 or inputs[0].shape != inputs[1].shape:
        return None
    left, right = (_in_front(value) for value in inputs)
    for skip, branch in ((left, right), (right, left)):
        if _computed_from(branch, skip):
            return Residual(
                module=module_of(node) or node_name(node),
                node=node_name(node),
                skip=value_name(skip),
                branch=value_name(branch),
                quantized=any(value is not end for value, end in zip(inputs, (left, right), strict=True)),
            )
    return None


def _in_front(value: ir.Value) -> ir.Value:
    """What a Q/DQ pair reads."""
    producer = value.producer()
    while producer is not None and producer.op_type in _PAIR and producer.inputs[0] is not None:
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _computed_from(value: ir.Value, source: ir.Value) -> bool:
    """Whether `source` is an ancestor of `value`, with a product among the nodes between."""
    waiting, seen, reached, product = [value], {value}, False, False
    while waiting:
        node = waiting.pop().producer()
        if node is None:
            continue
        product = product or node.op_type in _PRODUCTS
        for ancestor in node.inputs:
            if ancestor is source:
                reached = True
            elif ancestor is not None and ancestor not in seen:
                seen.add(ancestor)
                waiting.append(ancestor)
    return reached and product
