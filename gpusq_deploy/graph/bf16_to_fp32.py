"""A BF16 or FP16 graph in float32: the CPU has no BF16 kernels, and a build starts from float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gpusq_deploy.graph.values import array_of

_FLOAT = ir.DataType.FLOAT


def widened(model: ir.Model, narrow: ir.DataType = ir.DataType.BFLOAT16) -> bool:
    """Compute in float32 what a graph computes in BF16, or FP16, in place; weights and scales keep their values.

    Quantisers stay as they are. What BF16 rounds between operators, by 2^-9 of a value, isn't rounded any more; of FP16
    it is 2^-11.

    Returns:
        Whether anything was of the narrow type.
    """
    values = [value for value in _values(model.graph) if value.dtype == narrow]
    for value in values:
        if value.const_value is not None:
            value.const_value = ir.tensor(array_of(value).astype(np.float32), name=value.name)
        value.type = ir.TensorType(_FLOAT)
    named = [_widen_attributes(node, narrow) for node in ir.traversal.RecursiveGraphIterator(model.graph)]
    return bool(values) or any(named)


def _values(graph: ir.Graph) -> list[ir.Value]:
    """All values, those of subgraphs too, each once: a graph's inputs may be initializers too."""
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    graphs = dict.fromkeys([graph, *(node.graph for node in nodes if isinstance(node.graph, ir.Graph))])
    held = [value for one in graphs for value in (*one.inputs, *one.initializers.values())]
    return list(dict.fromkeys([*held, *(value for node in nodes for value in node.outputs)]))


def _widen_attributes(node: ir.Node, narrow: ir.DataType) -> bool:
    """The types that a node names: what a Cast or a quantiser gives, and the tensor of a constant."""
    named = [name for name in ("to", "output_dtype", "dtype") if node.attributes.get_int(name, 0) == narrow]
    for name in named:
        node.attributes[name] = ir.AttrInt64(name, _FLOAT)
    held = node.attributes.get_tensor("value", None)
    if held is not None and held.dtype == narrow:
        wide = np.asarray(held.numpy(), dtype=np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(wide))
        named.append("value")
    return bool(named)
