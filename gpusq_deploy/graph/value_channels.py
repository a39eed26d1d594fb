"""Which channels of a Linear layer are the values of an attention, and where they stand in the attention's result.

A softmax's outputs sum to 1 over the tokens that they weigh. So a factor and an offset of a value channel pass through
the attention as they are, and whoever writes the values can take them up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.graph.evaluation import evaluate
from gpusq_deploy.graph.shapes import dimensions, shape_value
from gpusq_deploy.graph.values import array_of, is_constant, node_name

_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather", "Split"})
# Between the softmax and the product.
_SAME_ROWS = frozenset({"Cast", "Identity"})

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueChannels:
    """Channel j of an attention's result is a weighted mean, over tokens, of one channel of a Linear layer.

    Attributes:
        writer: The layer's node.
        channels: [K]; the layer's output channel for each j, none twice.
    """

    writer: str
    channels: tuple[int, ...]


def value_channels(value: ir.Value, opset: int) -> ValueChannels | str:
    """Where the channels of `value` [..., K] come from; or why that isn't known.

    1. Behind nodes that only move it stands a MatMul, whose first input is a Softmax over its last axis.
    2. Behind the second stands a Linear layer, again through nodes that only move.
    3. Which channel goes where is found by sending every channel's number along both ways. All tokens agree on it, and
       no other reader sees a channel that is a value.
    """
    context, behind = _back(value)
    if context is None or context.op_type != "MatMul" or not _weighs(context):
        return "it isn't the result of an attention"
    operand = context.inputs[1]
    source, _ = (None, []) if operand is None else _back(operand)
    writer = None if source is None else _linear(source)
    if source is None or writer is None:
        return "the attention's values don't come from a Linear layer"
    seen = _readers(source.outputs[0], opset)
    if seen is None:
        return "the way of the attention's values isn't known"
    tags = seen.pop((context, 1), None)
    if tags is None or any(np.isin(other, tags).any() for other in seen.values()):
        return "something else reads the attention's values too"
    result = _through(context, tags, behind, opset)
    return result if isinstance(result, str) else ValueChannels(writer=node_name(writer), channels=result)


def _back(value: ir.Value) -> tuple[ir.Node | None, list[ir.Node]]:
    """The nearest node that computes, and those that move its result on to `value`, in the order of the graph."""
    steps: list[ir.Node] = []
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        steps.insert(0, node)
        node = node.inputs[0].producer()
    return node, steps


def _weighs(context: ir.Node) -> bool:
    """Whether its first input holds weights that sum to 1 over the tokens."""
    node = None if context.inputs[0] is None else context.inputs[0].producer()
    while node is not None and node.op_type in _SAME_ROWS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type != "Softmax":
        return False
    shape = node.outputs[0].shape
    return node.attributes.get_int("axis", -1) in {-1, -1 if shape is None else len(shape) - 1}


def _linear(node: ir.Node) -> ir.Node | None:
    """The MatMul or Gemm with a constant weight that is, perhaps with a bias, what `node` answers."""
    if node.op_type == "Add":
        sides = [side for side in node.inputs if side is not None and not is_constant(side)]
        producer = sides[0].producer() if len(sides) == 1 else None
        return None if producer is None or producer.op_type != "MatMul" else _linear(producer)
    return node if node.op_type in {"MatMul", "Gemm"} and is_constant(node.inputs[1]) else None


def _readers(source: ir.Value, opset: int) -> dict[tuple[ir.Node, int], Ints] | None:
    """The numbers of the channels of `source` [..., C] as each node sees them that doesn't only move them."""
    shape = dimensions(source, 1)
    if shape is None or source.is_graph_output():
        return None
    known = {source: np.broadcast_to(np.arange(shape[-1], dtype=np.int64), shape)}
    seen: dict[tuple[ir.Node, int], Ints] = {}
    waiting = [source]
    while waiting:
        value = waiting.pop()
        for reader, index in value.uses():
            if reader.op_type not in _MOVES or index != 0:
                seen[reader, index] = known[value]
                continue
            moved = _moved(reader, known[value], opset)
            if moved is None or any(output.is_graph_output() for output in reader.outputs):
                return None
            known.update(zip(reader.outputs, moved, strict=True))
            waiting.extend(reader.outputs)
    return seen


def _through(context: ir.Node, tags: Ints, behind: list[ir.Node], opset: int) -> tuple[int, ...] | str:
    """The channel numbers [K] behind the product and the nodes that move its result on."""
    shape = dimensions(context.outputs[0], 1)
    if shape is None or (tags != tags[..., :1, :]).any():
        return "the channels of the attention's values aren't the same for all tokens"
    moved: Ints = np.broadcast_to(tags[..., :1, :], shape)
    for node in behind:
        if len(node.outputs) > 1 or len(node.inputs[0].uses() if node.inputs[0] is not None else ()) != 1:
            return "something else reads the attention's result too"
        found = _moved(node, moved, opset)
        if found is None:
            return "the way of the attention's result isn't known"
        moved = found[0]
    rows = moved.reshape(-1, moved.shape[-1])
    channels = tuple(int(channel) for channel in rows[0])
    if (rows != rows[0]).any() or len(set(channels)) != len(channels):
        return "the channels of the attention's result aren't the same for all tokens"
    return channels


def _moved(node: ir.Node, array: Ints, opset: int) -> tuple[Ints, ...] | None:
    """What a node makes of the numbers for a batch of one; None where its other inputs depend on data."""
    others = [_other(value) for value in node.inputs[1:]]
    if any(other is None and value is not None for other, value in zip(others, node.inputs[1:], strict=True)):
        return None
    return evaluate(node, [np.ascontiguousarray(array), *others], opset)


def _other(value: ir.Value | None) -> Ints | None:
    if value is not None and is_constant(value):
        return array_of(value)
    return shape_value(value, 1)
