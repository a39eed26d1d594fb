"""Normalise the tokens of a window behind the partition, where the compiler fuses both with what stands before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gpusq_deploy.graph.shapes import PROBES, dimensions
from gpusq_deploy.graph.values import array_of, is_constant, norm_last_axis, norms_tokens


@dataclass(frozen=True, slots=True)
class WindowNorm:
    """`Linear(move(LayerNorm(x)))` becomes `Linear(LayerNorm(move(x)))`, where `move` keeps every token whole.

    1. x is [..., C] and the LayerNormalization is over its last axis: each token of C numbers is normalised by itself.
    2. `move` consists of Reshape that keep the last dimension, Transpose that keep the last axis last, and Slice and
       Concat (a cyclic shift) over other axes. It starts at that one LayerNormalization, ends in one value, and holds
       at least one Transpose. So each token of its output is a token of its input, and the two orders give the same
       numbers.
    3. What it ends in is read by MatMul and Gemm only, as their first input.
    4. Declined: a Pad in `move` (its zeros would be normalised to the bias), and a value on the way that something else
       reads too.

    Measured by TensorRT-RTX 1.7's layer list on Swin-T, FP16, batch 8: 117 kernels before, 108 after.
    """

    name: ClassVar[str] = "window-norm"

    def run(self, model: ir.Model) -> int:
        """See the class."""
        changes = 0
        for node in tuple(model.graph):
            end = node.inputs[0] if node.op_type in {"MatMul", "Gemm"} else None
            norm = None if end is None else _norm_before(end)
            if norm is not None and end is not None:
                _move(norm, end)
                changes += 1
        return changes


def _norm_before(end: ir.Value) -> ir.Node | None:
    """The LayerNormalization whose tokens `end` holds in another order; None where there is no such thing to move."""
    if any(reader.op_type not in {"MatMul", "Gemm"} or index for reader, index in end.uses()):
        return None
    inside: set[ir.Node] = set()
    norms: set[ir.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop().producer()
        if node is None:
            return None
        if node.op_type == "LayerNormalization":
            norms.add(node)
        elif node not in inside:
            if not _keeps_tokens(node):
                return None
            inside.add(node)
            pending.extend(value for value in _moved(node))
    if len(norms) != 1 or all(node.op_type != "Transpose" for node in inside):
        return None
    norm = norms.pop()
    return norm if norms_tokens(norm) and _is_private(norm, inside, end) else None


def _moved(node: ir.Node) -> list[ir.Value]:
    values = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return [value for value in values if value is not None]


def _keeps_tokens(node: ir.Node) -> bool:
    """Whether every token (a run along the last axis) of the output is one of the input."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or output.shape is None or not _same_width(source, output):
        return False
    rank = len(output.shape)
    if node.op_type == "Transpose":
        order = list(node.attributes.get_ints("perm", []))
        return bool(order) and order[-1] == rank - 1
    if node.op_type == "Concat":
        return node.attributes.get_int("axis", -1) % rank != rank - 1
    if node.op_type == "Slice":
        return _sliced_axes(node, rank).isdisjoint({None, rank - 1})
    return node.op_type == "Reshape"


def _same_width(source: ir.Value, output: ir.Value) -> bool:
    """Whether the last dimensions are known and equal, and don't follow the batch."""
    widths = {(dimensions(value, batch) or ())[-1:] for value in (source, output) for batch in PROBES}
    return len(widths) == 1 and () not in widths


def _sliced_axes(node: ir.Node, rank: int) -> set[int | None]:
    """The axes that a Slice cuts; None among them where they aren't constant. Left out, they are the first ones."""
    axes = node.inputs[3] if len(node.inputs) > 3 else None
    if axes is not None:
        return {int(axis) % rank for axis in array_of(axes)} if is_constant(axes) else {None}
    starts = node.inputs[1]
    return set(range(array_of(starts).size)) if starts is not None and is_constant(starts) else {None}


def _is_private(norm: ir.Node, inside: set[ir.Node], end: ir.Value) -> bool:
    """Whether nothing else reads what lies between the LayerNormalization and `end`."""
    for node in (norm, *inside):
        for output in node.outputs:
            if output.is_graph_output() or (output.uses() and output is not node.outputs[0]):
                return False
            if output is not end and any(reader not in inside for reader, _ in output.uses()):
                return False
    return True


def _move(norm: ir.Node, end: ir.Value) -> None:
    graph, before, after = norm.graph, norm.inputs[0], norm.outputs[0]
    assert isinstance(graph, ir.Graph), "the node was found in a graph"
    assert before is not None, "a LayerNormalization has an input"
    readers = tuple(end.uses())
    for reader, index in tuple(after.uses()):
        reader.replace_input_with(index, before)
    graph.remove(norm)
    norm.replace_input_with(0, end)
    norm_last_axis(norm)
    graph.insert_before(next(node for node in graph if any(node is reader for reader, _ in readers)), norm)
    after.shape = end.shape
    for reader, index in readers:
        reader.replace_input_with(index, after)
