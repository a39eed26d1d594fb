"""What older opsets and exporters write out, as the one operator that passes and compilers look for."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from gpusq_deploy.graph import array_of, is_constant

_GELU_SINCE = 20
_CUBE = 0.044715  # of GELU's approximation by tanh, arXiv 1606.08415


def fuse_written_out(model: ir.Model) -> int:
    """Recognise GELU and LayerNormalization in their parts, by onnxscript's rewriter; how many were.

    1. `x · (1 + erf(x / √2)) / 2` is Gelu, which opset 20 brought, in any order of its factors.
    2. `x · (1 + tanh(√(2 / π) · (x + 0.044715 · x³))) / 2` is Gelu that approximates.
    3. `(x - mean) / √(mean((x - mean)²) + ε) · scale + bias` over the last axis is LayerNormalization, of opset
       17, where scale and bias are constants of one axis.
    4. `x · m + (bias - mean · m)` with `m = scale / √(mean((x - mean)²) + ε)` is it too, as TensorFlow writes it.
       GlobalAveragePool of three axes, which tf2onnx makes of a mean over the last one, is that mean.
    5. 3 with the variance as `max(mean(x²) - mean², 0)` is it too, as Flax writes it.
    """
    pattern: Any = importlib.import_module("onnxscript.rewriter").pattern  # its patterns are untyped
    means = [pattern.RewriteRule(_pool, _mean, _is_of_rows), pattern.RewriteRule(_mean_of, _mean, _is_of_last)]
    pattern.RewriteRuleSet(means).apply_to_model(model)
    # The rewriter tries every order of all sums and products at each node, which takes seconds: only what may be there.
    kinds = {node.op_type for node in model.graph}
    gelu = model.opset_imports.get("", 0) >= _GELU_SINCE
    rules = [pattern.RewriteRule(_norm, _fused_norm, _is_plain_norm)]
    if "Max" in kinds:
        rules.append(pattern.RewriteRule(_moments_norm, _fused_norm, _is_plain_norm))
    if "Reciprocal" in kinds:
        norms = (_affine_norm, _scaled_norm)
        rules += [pattern.RewriteRule(each, _fused_affine_norm, _is_affine_norm) for each in norms]
    if gelu and "Erf" in kinds:
        rules += [pattern.RewriteRule(each, _fused_gelu) for each in _gelus(_erf_of, _erf_of_product)]
    if gelu and "Tanh" in kinds:
        rules += [pattern.RewriteRule(each, _fused_tanh_gelu) for each in _gelus(_tanh_of)]
    return int(pattern.RewriteRuleSet(rules, commute=True).apply_to_model(model))


def _gelus(*curves: Callable[[Any, Any], Any]) -> list[Callable[[Any, Any], Any]]:
    """`x · (1 + curve(x)) / 2`, its factors in each order."""
    return [order(curve) for curve in curves for order in (_half_last, _half_inside, _half_first)]


def _half_last(curve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda op, x: op.Mul(op.Mul(x, op.Add(curve(op, x), 1.0)), 0.5)


def _half_inside(curve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda op, x: op.Mul(x, op.Mul(op.Add(curve(op, x), 1.0), 0.5))


def _half_first(curve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda op, x: op.Mul(op.Mul(x, 0.5), op.Add(curve(op, x), 1.0))


def _erf_of(op: Any, x: Any) -> Any:
    return op.Erf(op.Div(x, math.sqrt(2)))


def _erf_of_product(op: Any, x: Any) -> Any:
    return op.Erf(op.Mul(x, math.sqrt(0.5)))


def _tanh_of(op: Any, x: Any) -> Any:
    return op.Tanh(op.Mul(op.Add(x, op.Mul(op.Pow(x, 3.0), _CUBE)), math.sqrt(2 / math.pi)))


def _fused_gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x)


def _fused_tanh_gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x, approximate="tanh")


def _norm(op: Any, x: Any, scale: Any, bias: Any, epsilon: Any) -> Any:
    apart = op.Sub(x, op.ReduceMean(x, [-1], _outputs=["mean"]))
    variance = op.ReduceMean(op.Pow(apart, 2.0), [-1], _outputs=["variance"])
    return op.Add(op.Mul(op.Div(apart, op.Sqrt(op.Add(variance, epsilon))), scale), bias)


def _moments_norm(op: Any, x: Any, scale: Any, bias: Any, epsilon: Any) -> Any:
    mean = op.ReduceMean(x, [-1], _outputs=["mean"])
    square = op.ReduceMean(op.Mul(x, x), [-1], _outputs=["variance"])
    variance = op.Max(op.Sub(square, op.Mul(mean, mean)), 0.0)
    return op.Add(op.Mul(op.Div(op.Sub(x, mean), op.Sqrt(op.Add(variance, epsilon))), scale), bias)


def _is_plain_norm(_context: Any, scale: ir.Value, bias: ir.Value, epsilon: ir.Value, **found: Any) -> bool:
    means = [found[name].producer() for name in ("mean", "variance")]
    kept = all(node.attributes.get_int("keepdims", 1) == 1 for node in means)
    rows = all(is_constant(value) and value.shape is not None and len(value.shape) == 1 for value in (scale, bias))
    return kept and rows and is_constant(epsilon) and epsilon.const_value is not None and epsilon.const_value.size == 1


def _fused_norm(op: Any, x: Any, scale: Any, bias: Any, epsilon: ir.Value, **_: Any) -> Any:
    return op.LayerNormalization(x, scale, bias, axis=-1, epsilon=float(array_of(epsilon).item()))


def _pool(op: Any, x: Any) -> Any:
    return op.GlobalAveragePool(x)


def _is_of_rows(_context: Any, x: ir.Value, **_: Any) -> bool:
    return x.shape is not None and len(x.shape) == 3


def _mean_of(op: Any, x: Any, axes: Any) -> Any:
    return op.ReduceMean(x, axes, _outputs=["mean"])


def _is_of_last(_context: Any, x: ir.Value, axes: ir.Value, mean: ir.Value, **_: Any) -> bool:
    """Over the last axis alone, which is counted from the first."""
    node = mean.producer()
    if x.shape is None or not is_constant(axes) or node is None or node.attributes.get_int("keepdims", 1) != 1:
        return False
    return array_of(axes).reshape(-1).tolist() == [len(x.shape) - 1]


def _mean(op: Any, x: Any, **_: Any) -> Any:
    return op.ReduceMean(x, op.Constant(value_ints=[-1]), keepdims=1)


def _affine_norm(op: Any, x: Any, scale: Any, bias: Any, epsilon: Any) -> Any:
    mean, factor = _mean_and_factor(op, x, scale, epsilon)
    return op.Add(op.Mul(x, factor), op.Add(op.Mul(op.Neg(mean), factor), bias))


def _scaled_norm(op: Any, x: Any, scale: Any, epsilon: Any) -> Any:
    """Without a bias: one of zeros is folded away."""
    mean, factor = _mean_and_factor(op, x, scale, epsilon)
    return op.Add(op.Mul(x, factor), op.Mul(op.Neg(mean), factor))


def _mean_and_factor(op: Any, x: Any, scale: Any, epsilon: Any) -> tuple[Any, Any]:
    mean = op.ReduceMean(x, [-1], _outputs=["mean"])
    apart = op.Sub(x, mean)
    variance = op.ReduceMean(op.Mul(apart, apart), [-1], _outputs=["variance"])
    return mean, op.Mul(op.Reciprocal(op.Sqrt(op.Add(variance, epsilon))), scale)


def _is_affine_norm(
    _context: Any, scale: ir.Value, epsilon: ir.Value, bias: ir.Value | None = None, **found: Any
) -> bool:
    means = [found[name].producer() for name in ("mean", "variance")]
    kept = all(node.attributes.get_int("keepdims", 1) == 1 for node in means)
    rows = [value for value in (scale, bias) if value is not None]
    return kept and all(map(_is_row, rows)) and is_constant(epsilon) and array_of(epsilon).size == 1


def _is_row(value: ir.Value) -> bool:
    """A constant of the last axis, with axes of one before it."""
    return is_constant(value) and len(array_of(value).shape) > 0 and array_of(value).size == array_of(value).shape[-1]


def _fused_affine_norm(
    op: Any, x: Any, scale: ir.Value, epsilon: ir.Value, mean: ir.Value, bias: ir.Value | None = None, **_: Any
) -> Any:
    row = array_of(scale).reshape(-1)
    shift = np.zeros_like(row) if bias is None else array_of(bias).reshape(-1)
    rows = [
        op.initializer(ir.tensor(value), name=f"{mean.name}_{role}")
        for role, value in (("scale", row), ("bias", shift))
    ]
    return op.LayerNormalization(x, *rows, axis=-1, epsilon=float(array_of(epsilon).item()))
