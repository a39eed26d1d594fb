"""Invariants that hold between passes, and that a finished Q/DQ model must keep."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.values import array_of, is_constant, node_name, value_name

# The first opset whose QuantizeLinear and DequantizeLinear have the type. INT8 is older: 19 brought scales in FP16.
_OPSETS = {ir.DataType.INT8: 10, ir.DataType.FLOAT8E4M3FN: 19, ir.DataType.INT4: 21}


def check_graph(model: ir.Model) -> None:
    """Raise a GpusqError for the first broken invariant; see `graph_faults`."""
    for fault in graph_faults(model):
        raise fault


def graph_faults(model: ir.Model) -> Iterator[GpusqError]:
    """Broken invariants of a graph, in node order.

    1. Node names and value names are present and unique.
    2. Every input is defined before it is read.
    3. Scales of Q and DQ are constant, finite and > 0; zero points are 0, and INT8, FLOAT8E4M3FN or INT4.
    4. A per-channel scale has one entry per index of its axis; a blocked one, one per block, and blocks are whole.
    5. The opset's Q and DQ have the type of the codes: FP8 from 19 on, INT4 from 21.
    6. A QuantizeLinear's output is read by DequantizeLinears only, with the same scale.
    """
    opset = model.graph.opset_imports.get("", 0)
    yield from _naming_faults(model.graph)
    for node in model.graph:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            yield from _scale_faults(node)
            yield from _type_faults(node, opset)
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
    if zero is not None and not _is_zero(zero):
        what = "the zero point is not INT8 zero, nor FP8's or INT4's"
        yield GpusqError(what, place=place, hint="TensorRT takes symmetric quantisation only: zero point 0")
    yield from _axis_faults(node, values.shape, place)


def _is_zero(zero: ir.Value) -> bool:
    return is_constant(zero) and zero.dtype in _OPSETS and not array_of(zero).astype(np.float32).any()


def _axis_faults(node: ir.Node, scales: tuple[int, ...], place: str) -> Iterator[GpusqError]:
    """As many scales as the tensor has indices along their axis, or blocks of them."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    axis = node.attributes.get_int("axis", 1)
    block = node.attributes.get_int("block_size", 0)
    if block and shape is not None:
        yield from _block_faults(shape, scales, axis, block, place)
        return
    if len(scales) != 1 or shape is None:
        return
    if not -len(shape) <= axis < len(shape) or scales[0] != shape[axis]:
        yield GpusqError(f"{scales[0]} scales for axis {axis} of {shape}", place=place)


def _block_faults(shape: ir.Shape, scales: tuple[int, ...], axis: int, block: int, place: str) -> Iterator[GpusqError]:
    """A scale for each `block` indices of `axis`, and for each index of the others."""
    if not -len(shape) <= axis < len(shape):
        yield GpusqError(f"blocks along axis {axis} of {shape}", place=place)
        return
    length = shape[axis]
    if not isinstance(length, int) or block < 0 or length % block:
        hint = "TensorRT takes whole blocks only"
        yield GpusqError(f"axis {axis} of {shape} is not made of blocks of {block}", place=place, hint=hint)
        return
    expected = [size // block if index == axis % len(shape) else size for index, size in enumerate(shape)]
    if list(scales) != expected:
        yield GpusqError(f"scales {list(scales)} for blocks of {block} along axis {axis} of {shape}", place=place)


def _type_faults(node: ir.Node, opset: int) -> Iterator[GpusqError]:
    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    dtype = None if codes is None else codes.dtype
    needed = 0 if dtype is None else _OPSETS.get(dtype, 0)
    if opset < needed:
        yield GpusqError(
            f"{node.op_type} has no {dtype} in opset {opset}", place=f"node {node_name(node)}", hint=f"opset {needed}"
        )


def _pairing_faults(node: ir.Node) -> Iterator[GpusqError]:
    place = f"node {node_name(node)}"
    readers = [reader for reader, _ in node.outputs[0].uses()]
    if not readers:
        yield GpusqError("nothing reads this QuantizeLinear", place=place)
    for reader in readers:
        if reader.op_type != "DequantizeLinear":
            yield GpusqError(f"its output goes to {reader.op_type}, not to a DequantizeLinear", place=place)
        elif len(reader.inputs) < 2 or not _same(reader.inputs[1], node.inputs[1] if len(node.inputs) > 1 else None):
            yield GpusqError("its DequantizeLinear has another scale", place=place)


def _same(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is not None and a is b:
        return True
    if a is None or b is None or not (is_constant(a) and is_constant(b)):
        return False
    return np.array_equal(array_of(a), array_of(b))
