"""The attentions of a graph: two products with a softmax between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from gpusq_deploy.artifacts import AttentionRole
from gpusq_deploy.graph.shapes import PROBES, dimensions
from gpusq_deploy.graph.values import is_constant, module_of, node_name, value_name

# Between the first product and the softmax: scale, position bias and mask, and the shapes that they need.
_ON_SCORES = frozenset({"Add", "Sub", "Mul", "Div", "Where", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity"})
_SAME_VALUES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Cast", "Identity"})
_MATRIX = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """One attention.

    Attributes:
        module: The torch module; the first product's name where there is none.
        scores: Node of the first product, query [..., N, d] by key [..., d, N].
        context: Node of the second, softmax [..., N, N] by value [..., N, d].
        query, key, softmax, value: Tensors that the two products read.
        output: Node of the weighted layer that reads the result, through shapes alone; empty where there is none.
        tokens: N of the keys; 0 where it is unknown or follows the batch.
        head: d of the values; 0 where it is unknown.
    """

    module: str
    scores: str
    context: str
    query: str
    key: str
    softmax: str
    value: str
    output: str
    tokens: int
    head: int


def find_attentions(model: ir.Model) -> tuple[Attention, ...]:
    """Attentions in graph order.

    1. A Softmax whose input comes from a product of two computed tensors, through nothing but scales, biases, masks
       and shapes.
    2. Its result goes to one place: the first input of another such product.
    3. Not found: the Attention operator of opset 23, which keeps its softmax to itself.
    """
    found = (_attention(node) for node in model.graph if node.op_type == "Softmax")
    return tuple(attention for attention in found if attention is not None)


def _attention(softmax: ir.Node) -> Attention | None:
    scores, context = _product_before(softmax), _product_behind(softmax)
    if scores is None or context is None:
        return None
    query, key, weights, value = (*scores.inputs[:2], *context.inputs[:2])
    if query is None or key is None or weights is None or value is None:
        return None
    tokens, head = _sizes(value)
    return Attention(
        module=module_of(scores) or node_name(scores),
        scores=node_name(scores),
        context=node_name(context),
        query=value_name(query),
        key=value_name(key),
        softmax=value_name(weights),
        value=value_name(value),
        output=_layer_behind(context),
        tokens=tokens,
        head=head,
    )


def _product_before(softmax: ir.Node) -> ir.Node | None:
    """The nearest product of two computed tensors behind which only `_ON_SCORES` stands."""
    waiting = [softmax.inputs[0]]
    while waiting:
        value = waiting.pop(0)
        node = None if value is None else value.producer()
        if node is None:
            continue
        if _is_product(node):
            return node
        if node.op_type in _ON_SCORES:
            waiting.extend(node.inputs)
    return None


def _product_behind(softmax: ir.Node) -> ir.Node | None:
    node = softmax
    while True:
        uses = tuple(node.outputs[0].uses())
        if len(uses) != 1:
            return None
        node, index = uses[0]
        if _is_product(node):
            return node if index == 0 else None
        if node.op_type not in _SAME_VALUES:
            return None


def _layer_behind(context: ir.Node) -> str:
    node = context
    while len(uses := tuple(node.outputs[0].uses())) == 1:
        node, index = uses[0]
        if node.op_type in {"MatMul", "Gemm"} and index == 0 and not _is_product(node):
            return node_name(node)
        if node.op_type not in _SAME_VALUES:
            break
    return ""


def _is_product(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and all(_is_computed(value) for value in node.inputs[:2])


def _is_computed(value: ir.Value | None) -> bool:
    while value is not None and not is_constant(value):
        node = value.producer()
        if node is None or node.op_type not in {*_SAME_VALUES, "DequantizeLinear"}:
            return True
        value = node.inputs[0]
    return False


def _sizes(value: ir.Value) -> tuple[int, int]:
    """Tokens and head size, where they don't depend on the batch."""
    shapes = [dimensions(value, batch) for batch in PROBES]
    known = [shape[-_MATRIX:] for shape in shapes if shape is not None and len(shape) >= _MATRIX]
    if len(known) < len(PROBES):
        return 0, 0
    tokens, head = ({shape[index] for shape in known} for index in range(_MATRIX))
    return (tokens.pop() if len(tokens) == 1 else 0), (head.pop() if len(head) == 1 else 0)


def tensors_of(attention: Attention) -> Iterator[tuple[AttentionRole, str]]:
    """Roles and tensors, in the order of the computation."""
    yield "query", attention.query
    yield "key", attention.key
    yield "softmax", attention.softmax
    yield "value", attention.value
