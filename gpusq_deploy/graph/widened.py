"""A BF16 graph in float32, for a CPU that has no BF16 kernels."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gpusq_deploy.graph.values import array_of

_BF16, _FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def widened(model: ir.Model) -> bool:
    """Compute in float32 what a graph computes in BF16, in place; weights and scales keep their BF16 values.

    Quantisers stay as they are. What BF16 rounds between operators, by 2^-9 of a value, isn't rounded any more.

    Returns:
        Whether anything was BF16.
    """
    values = [value for value in _values(model.graph) if value.dtype == _BF16]
    for value in values:
        if value.const_value is not None:
            value.const_value = ir.tensor(array_of(value).astype(np.float32), name=value.name)
        value.type = ir.TensorType(_FLOAT)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        _widen_attributes(node)
    return bool(values)


def _values(graph: ir.Graph) -> list[ir.Value]:
    """All values, each once: a graph's inputs may be initializers too."""
    outputs = [value for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.outputs]
    return list(dict.fromkeys([*graph.inputs, *graph.initializers.values(), *outputs]))


def _widen_attributes(node: ir.Node) -> None:
    """The types that a node names: what a Cast or a quantiser gives, and the tensor of a constant."""
    for name in ("to", "output_dtype", "dtype"):
        if node.attributes.get_int(name, 0) == _BF16:
            node.attributes[name] = ir.AttrInt64(name, _FLOAT)
    held = node.attributes.get_tensor("value", None)
    if held is not None and held.dtype == _BF16:
        wide = np.asarray(held.numpy(), dtype=np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(wide))
