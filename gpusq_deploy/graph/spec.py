"""Invariants that hold between passes, and that a finished Q/DQ model must keep."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.values import array_of, is_constant, node_name, value_name


def check_graph(model: ir.Model) -> None:
    """Raise a GpusqError for the first broken invariant; see `graph_faults`."""
    for fault in graph_faults(model):
        raise fault


def graph_faults(model: ir.Model) -> Iterator[GpusqError]:
    """Broken invariants of a graph, in node order.

    1. Node names and value names are present and unique.
    2. Every input is defined before it is read.
    3. Scales of Q and DQ are constant, finite and > 0; zero points are 0 and INT8.
    4. A per-channel scale has one entry per index of its axis.
    5. A QuantizeLinear's output is read by DequantizeLinears only, with the same scale.
    """
    yield from _naming_faults(model.graph)
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            yield from _scale_faults(node)
        if node.op_type == "QuantizeLinear":
            yield from _pairing_faults(node)


def _naming_faults(graph: ir.Graph) -> Iterator[GpusqError]:
    defined = {value_name(value) for value in graph.inputs} | set(graph.initializers)
    nodes: set[str] = set()
    for node in graph:
        name = node_name(node)
        if name in nodes:
            yield GpusqError("two nodes have one name", place=f"node {name}")
        nodes.add(name)
        for value in node.inputs:
            if value is not None and value_name(value) not in defined:
                yield GpusqError(f"reads {value_name(value)} before it is defined", place=f"node {name}")
        for value in node.outputs:
            if value_name(value) in defined:
                yield GpusqError(f"defines {value_name(value)} a second time", place=f"node {name}")
            defined.add(value_name(value))


def _scale_faults(node: ir.Node) -> Iterator[GpusqError]:
    place = f"node {node_name(node)}"
    scale = node.inputs[1] if len(node.inputs) > 1 else None
    if scale is None or not is_constant(scale):
        yield GpusqError("the scale is not a constant", place=place, hint="TensorRT needs constant scales")
        return
    values = array_of(scale).astype(np.float64)
    if not (np.isfinite(values).all() and (values > 0).all()):
        yield GpusqError("a scale is not positive and finite", place=place)
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and (not is_constant(zero) or zero.dtype != ir.DataType.INT8 or array_of(zero).any()):
        yield GpusqError("the zero point is not INT8 zero", place=place, hint="TensorRT takes symmetric INT8 only")
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    axis = node.attributes.get_int("axis", 1)
    if values.ndim != 1 or shape is None:
        return
    if not -len(shape) <= axis < len(shape) or values.size != shape[axis]:
        yield GpusqError(f"{values.size} scales for axis {axis} of {shape}", place=place)


def _pairing_faults(node: ir.Node) -> Iterator[GpusqError]:
    place = f"node {node_name(node)}"
    readers = [reader for reader, _ in node.outputs[0].uses()]
    if not readers:
        yield GpusqError("nothing reads this QuantizeLinear", place=place)
    for reader in readers:
        if reader.op_type != "DequantizeLinear":
            yield GpusqError(f"its codes go to {reader.op_type}, not to a DequantizeLinear", place=place)
        elif len(reader.inputs) < 2 or not _same(reader.inputs[1], node.inputs[1] if len(node.inputs) > 1 else None):
            yield GpusqError("its DequantizeLinear has another scale", place=place)


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is not None and a is b:
        return True
    if a is None or b is None or not (is_constant(a) and is_constant(b)):
        return False
    return np.array_equal(array_of(a), array_of(b))
