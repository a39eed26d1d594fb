"""Weights that no rule of a recipe reaches: those of other operators than MatMul, Gemm and Conv."""

from __future__ import annotations

import onnx_ir as ir

from gpusq_deploy.graph.values import is_constant, module_of, node_name

# Operators whose weight, their second input, is multiplied with data.
_OTHERS = frozenset({"ConvTranspose", "RNN", "LSTM", "GRU"})


def other_weights(model: ir.Model) -> dict[str, str]:
    """Operator types by the names of such layers, in graph order."""
    return {
        module_of(node) or node_name(node): node.op_type
        for node in model.graph
        if node.op_type in _OTHERS and is_constant(node.inputs[1])
    }
