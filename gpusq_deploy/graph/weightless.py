"""The same graph with fewer weights: what a compiler makes of it is the same, in a fraction of the memory.

A compiler chooses kernels by shapes and types. Weights of one shape may share one tensor, as long as no two nodes
become the same node by that, which it would compute once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gpusq_deploy.graph.values import array_of, value_name

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_LEAST_BYTES = 4096
# Where the weights of a graph would lie that was written without them.
_LEFT_OUT = "weights-left-out"
# FP16's largest finite number.
_MOST = 65504.0


def share_weights(model: ir.Model) -> int:
    """Let float32 weights of one shape be one tensor, in place; how many were left out. The model is then nonsense.

    1. Two weights share only where those that read them read no other tensor in common: equal weights of one input
       would be one product.
    2. A weight whose input goes to another product too keeps its own: compilers join such products.
    3. Constants below 4 KiB keep their own: they may be anything. So do those that the graph answers.
    """
    shared: dict[tuple[int, ...], list[tuple[ir.Value, set[ir.Value]]]] = {}
    changes = 0
    for value in tuple(model.graph.initializers.values()):
        beside = _read_beside(value)
        if not _is_large(value) or any(_products_of(other) > 1 for other in beside):
            continue
        assert value.shape is not None, "an initializer has a shape"
        known = shared.setdefault(value.shape.numpy(), [])
        for kept, seen in known:
            if not seen & beside:
                _take_over(model.graph, value, kept)
                seen |= beside
                changes += 1
                break
        else:
            known.append((value, beside))
    return changes


def without_weights(model: ir.Model) -> ir.Model:
    """A copy to look at: constants of 4 KiB and more are external data of a file that isn't written."""
    light = model.clone()
    for value in light.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _LEAST_BYTES:
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor(
                _LEFT_OUT, 0, tensor.nbytes, tensor.dtype, shape=shape, name=value_name(value)
            )
    return light


def cut_constants(model: ir.Model) -> int:
    """Cut float32 constants to what FP16 can hold, in place; how many were cut. Infinities stay."""
    changes = 0
    for value in model.graph.initializers.values():
        if value.const_value is None or value.dtype != ir.DataType.FLOAT:
            continue
        values = array_of(value)
        if np.any(np.isfinite(values) & (np.abs(values) > _MOST)):
            cut = np.where(np.isinf(values), values, np.clip(values, -_MOST, _MOST))
            value.const_value = ir.tensor(cut.astype(np.float32), name=value.name)
            changes += 1
    return changes


def _is_large(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or value.is_graph_output():
        return False
    return value.dtype == ir.DataType.FLOAT and tensor.nbytes >= _LEAST_BYTES


def _read_beside(value: ir.Value) -> set[ir.Value]:
    """The other inputs of the nodes that read a value."""
    return {
        other
        for node, index in value.uses()
        for place, other in enumerate(node.inputs)
        if place != index and other is not None
    }


def _products_of(value: ir.Value) -> int:
    return sum(node.op_type in _PRODUCTS for node, _ in value.uses())


def _take_over(graph: ir.Graph, value: ir.Value, kept: ir.Value) -> None:
    for node, index in tuple(value.uses()):
        node.replace_input_with(index, kept)
    assert value.name is not None, "an initializer has a name"
    del graph.initializers[value.name]
