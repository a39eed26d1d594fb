"""The residual adds of a graph: what skips a block, and what the block adds to it."""

from __future__ import annotations

from collections.abc import Collection
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
        total: What the Add gives.
        quantized: Whether one of the two comes out of a DequantizeLinear.
    """

    module: str
    node: str
    skip: str
    branch: str
    total: str
    quantized: bool


def find_residuals(model: ir.Model) -> tuple[Residual, ...]:
    """Residual adds in graph order.

    1. An Add of two computed tensors of one shape, of which one was computed from the other, through a matrix product
       or a convolution.
    2. Not found: an add whose skipping side has a product of its own, as where a ResNet's stage changes its size.
    """
    found = (_residual(node) for node in model.graph if node.op_type == "Add")
    return tuple(residual for residual in found if residual is not None)


def branches_of_nodes(model: ir.Model, nodes: Collection[str]) -> dict[str, Residual]:
    """By node, the innermost residual add that it works for: the first that it reaches by the branch alone.

    A node that reaches no add so isn't named: one outside all blocks, or one that both sides are computed from.

    Args:
        model: The graph.
        nodes: Names of the nodes in question.
    """
    values = {value_name(value): value for node in model.graph for value in node.outputs}
    found: dict[str, Residual] = {}
    for residual in find_residuals(model):
        within = _ancestors(values[residual.branch])
        if residual.skip in values:
            within -= _ancestors(values[residual.skip])
        for node in within:
            if node_name(node) in nodes:
                found.setdefault(node_name(node), residual)
    return found


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
                total=value_name(node.outputs[0]),
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
    between = _ancestors(value, stop=source)
    reached = any(given is source for node in between for given in node.inputs)
    return reached and any(node.op_type in _PRODUCTS for node in between)


def _ancestors(value: ir.Value, *, stop: ir.Value | None = None) -> set[ir.Node]:
    """The nodes that a value is computed by; those behind `stop` only as far as another way leads to them."""
    waiting, found = [value], set[ir.Node]()
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in found:
            continue
        found.add(node)
        waiting.extend(given for given in node.inputs if given is not None and given is not stop)
    return found
