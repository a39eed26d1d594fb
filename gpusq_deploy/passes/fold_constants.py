"""Work out what depends on constants only, such as a position bias, before a compiler has to see how it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.graph.evaluate import evaluate
from gpusq_deploy.graph.values import add_initializer, array_of, is_constant, node_name

# Deterministic, without side effects, and seen in the biases, masks and scales of exported attention.
_MOVES = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"}
    | {"Unsqueeze", "Where"}
)
_COMPUTES = frozenset(
    {"Abs", "Add", "Clip", "Div", "Floor", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Reciprocal", "Sign", "Sub"}
    | {"Cos", "Erf", "Exp", "Gelu", "Gemm", "LayerNormalization", "Log", "Pow", "Relu", "Sigmoid", "Sin", "Softmax"}
    | {"Sqrt", "Tanh"}
    | {"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"}
    | {"ConstantOfShape", "CumSum", "GatherND", "Range", "ReduceSum", "Resize", "ScatterND", "Tile"}
)
_WEIGHTED = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_LARGEST_BYTES = 16 << 20

_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class FoldConstants:
    """Replace values that depend on constants only by what they are.

    1. Nodes of the kinds listed in this module are worked out by onnx's reference implementation, in graph order. What
       other nodes read of them becomes a new constant; the nodes go.
    2. Declined: a constant that a MatMul, Gemm or Conv multiplies data with, and that is only transposed, reshaped or
       cast on the way: a layer's weight stays the tensor of the checkpoint. So does one behind Q/DQ. A product of
       constants is no layer: a detector's first attention among its queries is the same for every image.
    3. A Resize is worked out where all elements are one number, which they then stay: a detector's mask of an image
       that fills its batch.
    4. Declined: results above 16 MiB, what the graph answers, and nodes with a subgraph.

    Measured by TensorRT-RTX 1.7's layer list on Swin-T, FP16, batch 8: it recognises 2 of 12 attentions with the
    position bias behind Reshape, Transpose and Unsqueeze, and 12 with the bias as one constant.
    """

    name: ClassVar[str] = "fold-constants"

    def run(self, model: ir.Model) -> int:
        """See the class."""
        graph, opset = model.graph, model.opset_imports.get("", 20)
        known: dict[ir.Value, _Array] = {}
        for node in graph:
            if _is_foldable(node, known):
                found = _evaluate(node, known, opset)
                if found.nbytes <= _LARGEST_BYTES:
                    known[node.outputs[0]] = found
        changes = sum(_replace(graph, value, array, known) for value, array in known.items())
        if changes:
            common.RemoveUnusedNodesPass()(model)
        return changes


def _is_foldable(node: ir.Node, known: Mapping[ir.Value, _Array]) -> bool:
    if node.op_type not in _MOVES | _COMPUTES or node.domain not in {"", "ai.onnx"} or len(node.outputs) != 1:
        return False
    given = [value for value in node.inputs if value is not None]
    if not given or not all(value in known or is_constant(value) for value in given):
        return False
    return node.op_type != "Resize" or _is_resize_of_one_number(node, known)


def _is_resize_of_one_number(node: ir.Node, known: Mapping[ir.Value, _Array]) -> bool:
    image, shape = node.inputs[0], node.outputs[0].shape
    if image is None or shape is None or not shape.is_static():
        return False
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return False
    values = _constant(image, known)
    return values.size > 0 and bool(np.all(values == values.flat[0]))


def _evaluate(node: ir.Node, known: Mapping[ir.Value, _Array], opset: int) -> _Array:
    """What a node answers. A product is taken in float64, so that it doesn't depend on the number of threads."""
    if node.op_type == "MatMul":
        a, b = (_constant(value, known) for value in node.inputs if value is not None)
        product: _Array = np.matmul(a.astype(np.float64), b.astype(np.float64))
        return product.astype(a.dtype)
    if node.op_type == "Gemm":
        return _gemm(node, [_constant(value, known) for value in node.inputs if value is not None])
    if node.op_type == "Transpose" and node.inputs[0] is not None:  # a view: most of them turn weights, and stay
        return np.transpose(_constant(node.inputs[0], known), node.attributes.get_ints("perm", None))
    if node.op_type == "Resize" and node.inputs[0] is not None and node.outputs[0].shape is not None:
        image = _constant(node.inputs[0], known)
        return np.full(node.outputs[0].shape.numpy(), image.flat[0], image.dtype)
    inputs = [None if value is None else _constant(value, known) for value in node.inputs]
    return evaluate(node, inputs, opset)[0]


def _gemm(node: ir.Node, given: Sequence[_Array]) -> _Array:
    a, b, *c = (array.astype(np.float64) for array in given)
    a = a.T if node.attributes.get_int("transA", 0) else a
    b = b.T if node.attributes.get_int("transB", 0) else b
    product: _Array = node.attributes.get_float("alpha", 1.0) * (a @ b)
    for bias in c:
        product = product + node.attributes.get_float("beta", 1.0) * bias
    return product.astype(given[0].dtype)


def _constant(value: ir.Value, known: Mapping[ir.Value, _Array]) -> _Array:
    """What a constant of the graph holds, or what was worked out."""
    return known[value] if value in known else array_of(value)


def _replace(graph: ir.Graph, value: ir.Value, array: _Array, known: Mapping[ir.Value, _Array]) -> int:
    """Give the constant to the readers that stay; 1 where there are any."""
    node = value.producer()
    if node is None or value.is_graph_output() or (_is_only_moved(value) and _is_weight(value, known)):
        return 0
    readers = [(reader, index) for reader, index in value.uses() if reader.outputs[0] not in known]
    if not readers:
        return 0
    constant = add_initializer(graph, f"{node_name(node)}_folded", np.ascontiguousarray(array))
    for reader, index in readers:
        reader.replace_input_with(index, constant)
    return 1


def _is_weight(value: ir.Value, known: Mapping[ir.Value, _Array]) -> bool:
    """Whether a reader, behind nodes that only move or cast it, multiplies data with it."""
    pending = list(value.uses())
    while pending:
        reader, index = pending.pop()
        if (reader.op_type in _WEIGHTED or "Linear" in reader.op_type) and reader.outputs[0] not in known:
            return True
        if reader.op_type in _MOVES and index == 0:
            pending.extend(reader.outputs[0].uses())
    return False


def _is_only_moved(value: ir.Value) -> bool:
    """Whether it is one constant of the graph, moved or cast, and not computed from one."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return node is None
