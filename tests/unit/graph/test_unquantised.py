"""A quantised graph without its Q/DQ is the float graph again, as far as shapes, types and operators go."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import planning
import tiny_models

from gpusq_deploy.graph.unquantised import without_qdq


def _operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _quantized() -> planning.Quantized:
    weights = np.random.default_rng(0).uniform(1, 2, (8, 4)).astype(np.float32)
    text = "g (float[B,8] x) => (float[B,4] y) { [fc1] y = MatMul(x, w) }"
    return planning.quantized(tiny_models.graph(text, w=weights), planning.table({"x": 2.0}))


def test_the_products_are_left() -> None:
    made = _quantized()
    plain = without_qdq(made.after)
    assert "DequantizeLinear" in _operators(made.after)
    assert [op for op in _operators(plain) if op != "Cast"] == ["MatMul"]
    product = next(node for node in plain.graph if node.op_type == "MatMul")
    weight = product.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    assert (weight.shape.numpy(), weight.dtype) == ((8, 4), product.outputs[0].dtype or weight.dtype)
    assert weight.dtype in {ir.DataType.FLOAT, ir.DataType.FLOAT16}


def test_the_model_that_was_given_stays() -> None:
    made = _quantized()
    before = _operators(made.after)
    without_qdq(made.after)
    assert _operators(made.after) == before


def test_what_smoothing_put_in_front_goes_and_other_products_stay() -> None:
    text = """g (float[B,8] x) => (float[B,8] y) {
        shifted = Sub(x, z)
        smooth = Mul(shifted, s)
        q = QuantizeLinear(smooth, scale, zero)
        d = DequantizeLinear(q, scale, zero)
        twice = Mul(d, s)
        y = Add(twice, x)
    }"""
    vector = np.ones(8, np.float32)
    model = tiny_models.graph(text, z=vector, s=vector, scale=np.array(0.1, np.float32), zero=np.array(0, np.int8))
    plain = without_qdq(model)
    live = {node.op_type for node in plain.graph if node.outputs[0].uses() or node.outputs[0].name == "y"}
    assert live == {"Mul", "Add"}
    twice = next(node for node in plain.graph if node.outputs[0].name == "twice")
    assert twice.inputs[0] is plain.graph.inputs[0]
