"""What single nodes answer, by onnx's reference implementation or by ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]

_ONLY_FATAL = 4
# Inputs that say how large a result is are short lists of numbers.
_FEW = 64


def evaluate(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> tuple[Array, ...]:
    """All outputs of a node without subgraphs, for these values of its inputs; None is an input that isn't there."""
    model, feeds = _alone(node, inputs, {"": opset})
    answers = cast("list[Array]", ReferenceEvaluator(model).run(None, feeds))
    return tuple(np.asarray(answer, order="C") for answer in answers)


def evaluate_by_runtime(
    node: ir.Node, inputs: Sequence[Array | None], opsets: Mapping[str, int]
) -> tuple[Array, ...] | None:
    """The same by ONNX Runtime on one thread; None where it has no kernel for the operator or its types.

    It has operators that the reference implementation takes seconds for, such as the Resize of a position table.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _ONLY_FATAL
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        model, feeds = _alone(node, inputs, opsets)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        answers: list[Any] = session.run(None, feeds)
    except Exception:  # ONNX Runtime's exceptions have no common base below it
        return None
    # Sequences, maps and strings are no tensors that a graph could hold.
    arrays = cast("list[Array]", [answer for answer in answers if isinstance(answer, np.ndarray)])
    if len(arrays) != len(answers) or any(array.dtype == object for array in arrays):
        return None
    return tuple(np.asarray(array, order="C") for array in arrays)


def result_bytes(node: ir.Node, inputs: Sequence[Array | None], opsets: Mapping[str, int]) -> int:
    """How large a node's answers are, before it is evaluated; 0 where that can't be told."""
    sizes = [
        math.ceil(math.prod(value.shape.numpy()) * value.dtype.itemsize)
        for value in node.outputs
        if value.shape is not None and value.shape.is_static() and value.dtype is not None
    ]
    return sum(sizes) if len(sizes) == len(node.outputs) else _inferred_bytes(node, inputs, opsets)


def _inferred_bytes(node: ir.Node, inputs: Sequence[Array | None], opsets: Mapping[str, int]) -> int:
    model, feeds = _alone(node, inputs, opsets)
    for name, array in feeds.items():
        if array.size <= _FEW:
            model.graph.initializer.append(ir.to_proto(ir.tensor(array, name=name)))
    try:
        found = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return 0
    total = 0
    for output in found.graph.output:
        tensor = output.type.tensor_type
        if tensor.elem_type and tensor.HasField("shape"):
            size = math.prod(dimension.dim_value for dimension in tensor.shape.dim)
            total += math.ceil(size * ir.DataType(tensor.elem_type).itemsize)
    return total


def _alone(
    node: ir.Node, inputs: Sequence[Array | None], opsets: Mapping[str, int]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of one node, with typed inputs, and what to feed it."""
    proto = ir.to_proto(node)
    feeds: dict[str, Array] = {}
    for index, array in enumerate(inputs):
        if array is not None:  # renamed: one value may stand at several places
            proto.input[index] = f"input{index}"
            feeds[proto.input[index]] = array
    graph = onnx.GraphProto(name="node", node=[proto])
    for name, array in feeds.items():
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        graph.input.append(ir.to_proto(ir.Value(name=name, shape=ir.Shape(array.shape), type=kind)))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output)
    imports = [onnx.OperatorSetIdProto(domain=domain, version=version) for domain, version in opsets.items()]
    return onnx.ModelProto(ir_version=10, graph=graph, opset_import=imports), feeds
