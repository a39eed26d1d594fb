"""The same graph without Q/DQ: what a compiler would make of the float model that a quantised one came from."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.graph.values import add_initializer, array_of, is_constant, is_scalar, value_name

_DEQUANTIZE, _QUANTIZE = "DequantizeLinear", "QuantizeLinear"
_SMOOTHING = frozenset({"Mul", "Sub"})


def without_qdq(model: ir.Model) -> ir.Model:
    """A copy whose products multiply floats, for its kernels alone: what it answers is nonsense.

    1. What a QuantizeLinear and a DequantizeLinear do to an activation is left out.
    2. So are a Mul and a Sub with a constant vector that only a QuantizeLinear reads: smoothing put them there.
    3. A weight holds its codes as floats of the type that it was dequantised to: kernels depend on shapes and types.
    """
    plain = model.clone()
    for node in [node for node in plain.graph if node.op_type == _DEQUANTIZE]:
        source = _source(plain.graph, node)
        if source is not None:
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
            plain.graph.remove(node, safe=True)
    common.RemoveUnusedNodesPass()(plain)
    return plain


def _source(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """What stands for a DequantizeLinear's output; None where that isn't known."""
    codes, scale = node.inputs[:2]
    if codes is None or scale is None:
        return None
    if is_constant(codes):
        kind = node.outputs[0].dtype or scale.dtype
        assert kind is not None, "a scale has a type"
        dtype = cast("npt.DTypeLike", kind.numpy())
        floats = array_of(codes).astype(np.float32).astype(dtype)
        return add_initializer(graph, f"{value_name(codes)}_float", floats)
    maker = codes.producer()
    if maker is None or maker.op_type != _QUANTIZE:
        return None
    return _before_smoothing(maker.inputs[0])


def _before_smoothing(value: ir.Value | None) -> ir.Value | None:
    """Back over what smoothing put there, x' = (x - z) / s: each with a constant vector, and read once."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _SMOOTHING:
        kept = [other for other in node.inputs if not is_constant(other) or is_scalar(other)]
        if len(kept) != 1 or len(value.uses()) > 1:
            break
        value = kept[0]
    return value
