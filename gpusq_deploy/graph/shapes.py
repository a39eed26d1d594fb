"""Integer shape arithmetic of a graph, worked out for a given batch size."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.graph.values import array_of, is_constant

Ints = npt.NDArray[np.int64]

# Two sizes tell a dimension that follows the batch from one that doesn't; primes that no model dimension divides by.
PROBES = (10007, 10009)

_PRODUCT = re.compile(r"(?:(\d+)\s*\*\s*)?[A-Za-z_]\w*(?:\s*\*\s*(\d+))?")


def dimensions(value: ir.Value, batch: int) -> tuple[int, ...] | None:
    """A value's shape at a batch size; None where a dimension is not `batch` or a product with it."""
    if value.shape is None:
        return None
    sizes = [_size(dimension, batch) for dimension in value.shape]
    known = [size for size in sizes if size is not None]
    return tuple(known) if len(known) == len(sizes) else None


def shape_value(value: ir.Value | None, batch: int) -> Ints | None:
    """The integers that a value holds at a batch size, followed through Shape, Slice, Concat, Gather and (Un)squeeze.

    Returns:
        int64, any rank; None where the value depends on data or on an operator that isn't followed.
    """
    if value is None:
        return None
    if is_constant(value):
        return array_of(value).astype(np.int64) if value.dtype == ir.DataType.INT64 else None
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Shape":
        return _shape(node, batch)
    evaluate = _OPERATORS.get(node.op_type)
    inputs = [shape_value(item, batch) for item in node.inputs]
    present = [item for item in inputs if item is not None]
    return evaluate(node, present) if evaluate is not None and len(present) == len(inputs) else None


def _size(dimension: int | ir.SymbolicDim, batch: int) -> int | None:
    if isinstance(dimension, int):
        return dimension
    found = _PRODUCT.fullmatch(dimension.value or "")
    if found is None:
        return None
    return batch * int(found[1] or 1) * int(found[2] or 1)


def _shape(node: ir.Node, batch: int) -> Ints | None:
    source = node.inputs[0]
    sizes = None if source is None else dimensions(source, batch)
    if sizes is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(sizes))
    return np.array(sizes[start:end], dtype=np.int64)


def _slice(_node: ir.Node, inputs: list[Ints]) -> Ints | None:
    data, starts, ends = inputs[:3]
    if data.ndim != 1 or starts.size != 1 or any(item.size != 1 for item in inputs[3:]):
        return None
    step = int(inputs[4][0]) if len(inputs) > 4 else 1
    return data[int(starts[0]) : int(ends[0]) : step]


def _concat(_node: ir.Node, inputs: list[Ints]) -> Ints:
    return np.concatenate([np.atleast_1d(item) for item in inputs])


def _gather(_node: ir.Node, inputs: list[Ints]) -> Ints:
    return np.asarray(np.take(inputs[0], inputs[1]), dtype=np.int64)


def _unsqueeze(_node: ir.Node, inputs: list[Ints]) -> Ints:
    return np.atleast_1d(inputs[0])


def _squeeze(_node: ir.Node, inputs: list[Ints]) -> Ints | None:
    return inputs[0].reshape(()) if inputs[0].size == 1 else None


_OPERATORS: dict[str, Callable[[ir.Node, list[Ints]], Ints | None]] = {
    "Slice": _slice,
    "Concat": _concat,
    "Gather": _gather,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
}
