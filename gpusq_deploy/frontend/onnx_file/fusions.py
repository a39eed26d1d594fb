"""What older opsets and exporters write out, as the one operator that passes and compilers look for."""

from __future__ import annotations

import importlib
import math
from typing import Any

import onnx_ir as ir

from gpusq_deploy.graph import array_of, is_constant

_GELU_SINCE = 20


def fuse_written_out(model: ir.Model) -> int:
    """Recognise GELU and LayerNormalization in their parts, by onnxscript's rewriter; how many were.

    1. `x · (1 + erf(x / √2)) / 2` is Gelu, which opset 20 brought.
    2. `(x - mean) / √(mean((x - mean)²) + ε) · scale + bias` over the last axis is LayerNormalization, of opset
       17, where scale and bias are constants of one axis.
    """
    pattern: Any = importlib.import_module("onnxscript.rewriter").pattern  # its patterns are untyped
    rules = [pattern.RewriteRule(_norm, _fused_norm, _is_plain_norm)]
    if model.opset_imports.get("", 0) >= _GELU_SINCE:
        rules += [pattern.RewriteRule(each, _fused_gelu) for each in (_gelu, _gelu_of_half)]
    return int(pattern.RewriteRuleSet(rules, commute=True).apply_to_model(model))


def _gelu(op: Any, x: Any) -> Any:
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, math.sqrt(2))), 1.0)), 0.5)


def _gelu_of_half(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Mul(op.Add(op.Erf(op.Div(x, math.sqrt(2))), 1.0), 0.5))


def _fused_gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x)


def _norm(op: Any, x: Any, scale: Any, bias: Any, epsilon: Any) -> Any:
    apart = op.Sub(x, op.ReduceMean(x, [-1], _outputs=["mean"]))
    variance = op.ReduceMean(op.Pow(apart, 2.0), [-1], _outputs=["variance"])
    return op.Add(op.Mul(op.Div(apart, op.Sqrt(op.Add(variance, epsilon))), scale), bias)


def _is_plain_norm(_context: Any, scale: ir.Value, bias: ir.Value, epsilon: ir.Value, **found: Any) -> bool:
    means = [found[name].producer() for name in ("mean", "variance")]
    kept = all(node.attributes.get_int("keepdims", 1) == 1 for node in means)
    rows = all(is_constant(value) and value.shape is not None and len(value.shape) == 1 for value in (scale, bias))
    return kept and rows and is_constant(epsilon) and epsilon.const_value is not None and epsilon.const_value.size == 1


def _fused_norm(op: Any, x: Any, scale: Any, bias: Any, epsilon: ir.Value, **_: Any) -> Any:
    return op.LayerNormalization(x, scale, bias, axis=-1, epsilon=float(array_of(epsilon).item()))
