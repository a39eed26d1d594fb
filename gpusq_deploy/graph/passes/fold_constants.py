"""Work out what depends on constants only, such as a position bias, before a compiler has to see how it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.graph.evaluation import evaluate, evaluate_by_runtime, result_bytes
from gpusq_deploy.graph.values import add_initializer, array_of, is_constant, node_name

# These bring a weight to its product as it is.
_MOVES = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose"}
    | {"Unsqueeze", "Where"}
)
# Worked out by numpy, in onnx's reference implementation; all others by ONNX Runtime.
_BY_NUMPY = _MOVES | frozenset(
    {"Abs", "Add", "Clip", "Div", "Floor", "Max", "Min", "Mod", "Mul", "Neg", "Reciprocal", "Sign", "Sub"}
    | {"Cos", "Erf", "Exp", "Gelu", "LayerNormalization", "Log", "Pow", "Relu", "Sigmoid", "Sin", "Softmax"}
    | {"Sqrt", "Tanh"}
    | {"And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or"}
    | {"ConstantOfShape", "CumSum", "GatherND", "Range", "ReduceSum", "ScatterND", "Shape", "Tile"}
)
_WEIGHTED = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_QUANTISERS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
_BODIES = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})
_TRAINING = 2
_LARGEST_BYTES = 16 << 20
# Of a position table that is resized, which a graph needs at run time in any case.
_LARGEST_RESIZED = 256 << 20

_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class FoldConstants:
    """Replace values that depend on constants only by what they are.

    1. Nodes all of whose inputs are constants are worked out, whatever they compute, in graph order. What other nodes
       read of them becomes a new constant; the nodes go.
    2. Declined: a constant that a MatMul, Gemm or Conv multiplies data with, and that is only transposed, reshaped or
       cast on the way: a layer's weight stays the tensor of the checkpoint. So does one behind Q/DQ. A product of
       constants is no layer: a detector's first attention among its queries is the same for every image.
    3. Declined: results above 16 MiB that are larger than what they are made from, such as one number that is expanded
       (of a Resize, 256 MiB); numbers drawn at random; what the graph answers; nodes with a subgraph; and operators
       that ONNX Runtime's CPU provider lacks.

    Measured by TensorRT-RTX 1.7's layer list on Swin-T, FP16, batch 8: it recognises 2 of 12 attentions with the
    position bias behind Reshape, Transpose and Unsqueeze, and 12 with the bias as one constant. It can't parse a Resize
    with `antialias` at all: with it, timm and torchvision resize position tables. onnxscript 0.7.2's
    `fold_constants` also transposes weights, and leaves a Gelu or a Split of constants.
    """

    name: ClassVar[str] = "fold-constants"

    def run(self, model: ir.Model) -> int:
        """See the class."""
        graph, opsets = model.graph, {"": 20, **model.opset_imports}
        known: dict[ir.Value, _Array] = {}
        for node in graph:
            if _is_foldable(node, known):
                known.update(zip(node.outputs, _evaluate(node, known, opsets), strict=False))
        changes = sum(_replace(graph, value, array, known) for value, array in known.items())
        if changes:
            common.RemoveUnusedNodesPass()(model)
        return changes


def _is_foldable(node: ir.Node, known: Mapping[ir.Value, _Array]) -> bool:
    if node.op_type in _RANDOM | _QUANTISERS or any(item.type in _BODIES for item in node.attributes.values()):
        return False
    if node.op_type == "Dropout" and len(node.inputs) > _TRAINING:
        return False
    given = [value for value in node.inputs if value is not None]
    if not given or not all(output.name for output in node.outputs):
        return False
    return all(value in known or is_constant(value) for value in given)


def _evaluate(node: ir.Node, known: Mapping[ir.Value, _Array], opsets: Mapping[str, int]) -> tuple[_Array, ...]:
    """What a node answers; nothing where that is too large, or nobody can tell."""
    inputs = [None if value is None else _constant(value, known) for value in node.inputs]
    made_from = sum(known[value].nbytes for value in node.inputs if value is not None and value in known)
    allowed = max(made_from, _LARGEST_RESIZED if node.op_type == "Resize" else _LARGEST_BYTES)
    if result_bytes(node, inputs, opsets) > allowed:
        return ()
    found = _computed(node, inputs, opsets)
    return found if sum(array.nbytes for array in found) <= allowed else ()


def _computed(node: ir.Node, inputs: Sequence[_Array | None], opsets: Mapping[str, int]) -> tuple[_Array, ...]:
    """Nothing for what can't be computed, such as an index out of range: whoever loads the graph says so."""
    given = [array for array in inputs if array is not None]
    try:
        if node.domain not in {"", "ai.onnx"}:
            return evaluate_by_runtime(node, inputs, opsets) or ()
        if node.op_type == "Transpose":  # a view: most of them turn weights, and stay
            return (np.transpose(given[0], node.attributes.get_ints("perm", None)),)
        if node.op_type in {"MatMul", "Gemm"} and all(array.dtype.kind not in "iub" for array in given):
            return (_product(node, given),)
        if node.op_type in _BY_NUMPY:
            return evaluate(node, inputs, opsets[""])
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return ()
    return evaluate_by_runtime(node, inputs, opsets) or ()


def _product(node: ir.Node, given: Sequence[_Array]) -> _Array:
    """In float64, so that it doesn't depend on the number of threads."""
    if node.op_type == "Gemm":
        return _gemm(node, given)
    product: _Array = np.matmul(given[0].astype(np.float64), given[1].astype(np.float64))
    return product.astype(given[0].dtype)


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
    last = "" if len(node.outputs) == 1 else f"_{node.outputs.index(value)}"
    constant = add_initializer(graph, f"{node_name(node)}_folded{last}", np.asarray(array, order="C"))
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
