"""Layers and written-out operators of an ONNX file in the form that our own export has."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.frontend.onnx_file.fusions import fuse_written_out
from gpusq_deploy.frontend.onnx_file.layers import plain_layers
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.smoothable import bias_place

Array = npt.NDArray[Any]


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [("alpha = 0.5, beta = 3.0", (4, 6)), ("transA = 1", (6, 3)), ("transB = 1, alpha = 2.0", (4, 6))],
)
def test_a_gemm_s_attributes_go_into_its_constants(attributes: str, shape: tuple[int, int]) -> None:
    rows = "6, 3" if "transA" in attributes else "3, 6" if "transB" in attributes else "3, 4"
    weight = numbers(5, 6) if "transB" in attributes else numbers(6, 5) if "transA" in attributes else numbers(4, 5)
    text = f"m (float[{rows}] x) => (float[3, 5] y) {{ y = Gemm<{attributes}>(x, w, b) }}"
    model = tiny_models.graph(text, w=weight, b=numbers(1, 5, seed=1))
    feeds = {"x": numbers(*(int(size) for size in rows.split(", ")), seed=2)}
    before = tiny_models.run_model(model, feeds)["y"]

    assert plain_layers(model) == 1
    assert plain_layers(model) == 0
    np.testing.assert_allclose(tiny_models.run_model(model, feeds)["y"], before, rtol=1e-5, atol=1e-6)
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    assert not {"alpha", "beta", "transA"} & set(gemm.attributes)
    assert bias_place(gemm) == (gemm, 2)
    assert [(layer.n, layer.k) for layer in weighted_layers(model)] == [(5, weight.size // 5)]


def test_a_bias_with_axes_of_one_becomes_a_row() -> None:
    text = "m (float[2, 3, 4] x) => (float[2, 3, 5] y) { p = MatMul(x, w) y = Add(b, p) }"
    model = tiny_models.graph(text, w=numbers(4, 5), b=numbers(1, 1, 5))
    feeds = {"x": numbers(2, 3, 4)}
    before = tiny_models.run_model(model, feeds)["y"]
    assert plain_layers(model) == 1
    np.testing.assert_array_equal(tiny_models.run_model(model, feeds)["y"], before)
    product, add = model.graph
    assert bias_place(product) == (add, 0)


GELU = "m (float[2, 8] x) => (float[2, 8] y) {{ d = Div(x, r) e = Erf(d) a = Add({sum}) {rest} }}"
ORDERS = ("h = Mul(x, a) y = Mul(h, half)", "h = Mul(half, a) y = Mul(h, x)")


@pytest.mark.parametrize("rest", ORDERS)
@pytest.mark.parametrize("order", ["e, one", "one, e"])
def test_a_written_out_gelu_is_one(rest: str, order: str) -> None:
    scalars = {"r": np.sqrt(2), "one": 1.0, "half": 0.5}
    constants = {name: np.array(value, dtype=np.float32) for name, value in scalars.items()}
    model = tiny_models.graph(GELU.format(sum=order, rest=rest), **constants)
    feeds = {"x": numbers(2, 8)}
    before = tiny_models.run_model(model, feeds)["y"]
    assert fuse_written_out(model) == 1
    assert kinds(model) == ["Gelu"]
    np.testing.assert_allclose(tiny_models.run_model(model, feeds)["y"], before, atol=1e-6)


def test_what_looks_like_a_gelu_and_has_another_constant_stays() -> None:
    constants = {name: np.array(value, dtype=np.float32) for name, value in (("r", 1.5), ("one", 1.0), ("half", 0.5))}
    model = tiny_models.graph(GELU.format(sum="e, one", rest=ORDERS[0]), **constants)
    assert fuse_written_out(model) == 0


NORM = """m (float[2, 3, 8] x) => (float[2, 3, 8] y) {{
  m1 = ReduceMean<keepdims = 1>(x, {axes})
  d = Sub(x, m1)
  p = Pow(d, two)
  v = ReduceMean(p, {axes})
  s = Add(v, eps)
  q = Sqrt(s)
  n = Div(d, q)
  w = Mul(n, scale)
  y = Add(w, bias)
}}"""


@pytest.mark.parametrize(("axes", "found"), [("last", 1), ("second", 0)])
def test_a_written_out_norm_of_the_last_axis_is_one(axes: str, found: int) -> None:
    model = tiny_models.graph(
        NORM.format(axes=axes),
        last=np.array([-1]),
        second=np.array([1]),
        two=np.array(2, dtype=np.float32),
        eps=np.array(1e-6, dtype=np.float32),
        scale=numbers(8),
        bias=numbers(8, seed=1),
    )
    feeds = {"x": numbers(2, 3, 8)}
    before = tiny_models.run_model(model, feeds)["y"]
    assert fuse_written_out(model) == found
    assert ("LayerNormalization" in kinds(model)) == bool(found)
    np.testing.assert_allclose(tiny_models.run_model(model, feeds)["y"], before, atol=1e-5)


# As tf2onnx 1.17 writes a LayerNormalization and a GELU of Keras 3.15.
OF_KERAS = """m (float[2, 3, 8] x) => (float[2, 3, 8] y) {{
  mean = GlobalAveragePool(x)
  minus = Neg(mean)
  d = Sub(x, mean)
  p = Mul(d, d)
  v = GlobalAveragePool(p)
  s = Add(v, eps)
  q = Sqrt(s)
  r = Reciprocal(q)
  f = Mul(r, scale)
  xf = Mul(x, f)
  mf = Mul(minus, f)
  {rest}
}}"""


@pytest.mark.parametrize("rest", ["b = Add(mf, bias) y = Add(xf, b)", "y = Add(xf, mf)"], ids=["bias", "no bias"])
def test_a_norm_as_tensorflow_writes_it_is_one(rest: str) -> None:
    constants = (
        {"scale": numbers(1, 1, 8), "bias": numbers(1, 1, 8, seed=1)} if "bias" in rest else {"scale": numbers(1, 1, 8)}
    )
    model = tiny_models.graph(OF_KERAS.format(rest=rest), eps=np.array(1e-3, dtype=np.float32), **constants)
    feeds = {"x": numbers(2, 3, 8)}
    before = tiny_models.run_model(model, feeds)["y"]
    assert fuse_written_out(model) == 1
    assert kinds(model)[-1] == "LayerNormalization"
    assert not {"GlobalAveragePool", "ReduceMean", "Reciprocal"} & set(kinds(model))
    np.testing.assert_allclose(tiny_models.run_model(model, feeds)["y"], before, atol=1e-5)


# As jax2onnx 0.17 writes a LayerNorm of Flax 0.12.
OF_FLAX = """m (float[2, 3, 8] x) => (float[2, 3, 8] y) {
  mean = ReduceMean(x, axis)
  d = Sub(x, mean)
  xx = Mul(x, x)
  square = ReduceMean(xx, axis)
  mm = Mul(mean, mean)
  v = Sub(square, mm)
  n = Max(v, zero)
  s = Add(n, eps)
  q = Sqrt(s)
  r = Div(d, q)
  w = Mul(r, scale)
  y = Add(w, bias)
}"""


@pytest.mark.parametrize(("axis", "found"), [(2, 1), (1, 0)])
def test_a_norm_as_flax_writes_it_is_one(axis: int, found: int) -> None:
    scalars = {"eps": np.array(1e-3, dtype=np.float32), "zero": np.array(0, dtype=np.float32), "axis": np.array([axis])}
    model = tiny_models.graph(OF_FLAX, scale=numbers(8), bias=numbers(8, seed=1), **scalars)
    feeds = {"x": numbers(2, 3, 8)}
    before = tiny_models.run_model(model, feeds)["y"]
    assert fuse_written_out(model) == found
    assert ("LayerNormalization" in kinds(model)) == bool(found)
    np.testing.assert_allclose(tiny_models.run_model(model, feeds)["y"], before, atol=1e-5)


def test_a_pool_of_pictures_and_a_norm_of_another_scale_stay() -> None:
    pool = tiny_models.graph("m (float[2, 3, 8, 8] x) => (float[2, 3, 1, 1] y) { y = GlobalAveragePool(x) }")
    assert fuse_written_out(pool) == 0
    assert kinds(pool) == ["GlobalAveragePool"]
    text = OF_KERAS.format(rest="y = Add(xf, mf)")
    rows = tiny_models.graph(text, eps=np.array(1e-3, dtype=np.float32), scale=numbers(1, 3, 1))
    assert fuse_written_out(rows) == 0


CURVES = {
    "erf": "d = Mul(x, root) c = Erf(d)",
    "tanh": "p = Pow(x, three) k = Mul(cube, p) i = Add(x, k) j = Mul(ratio, i) c = Tanh(j)",
}


@pytest.mark.parametrize("curve", CURVES)
def test_a_gelu_as_tensorflow_writes_it_is_one(curve: str) -> None:
    text = f"m (float[2, 8] x) => (float[2, 8] y) {{ {CURVES[curve]} a = Add(one, c) h = Mul(half, x) y = Mul(h, a) }}"
    scalars = {"one": 1.0, "half": 0.5, "root": 0.70710677, "three": 3.0, "cube": 0.044715, "ratio": 0.7978845834}
    used = {name: value for name, value in scalars.items() if name in text.replace("=", " ")}
    model = tiny_models.graph(text, **{name: np.array(value, dtype=np.float32) for name, value in used.items()})
    feeds = {"x": numbers(2, 8)}
    before = tiny_models.run_model(model, feeds)["y"]
    assert fuse_written_out(model) == 1
    assert kinds(model) == ["Gelu"]
    assert next(iter(model.graph)).attributes.get_string("approximate", "none") == curve.split()[0].replace(
        "erf", "none"
    )
    np.testing.assert_allclose(tiny_models.run_model(model, feeds)["y"], before, atol=1e-6)
