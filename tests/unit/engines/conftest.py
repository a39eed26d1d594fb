"""Tiny models, made in code, that the builders compile in well under a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
ModelMaker = Callable[..., Path]

_HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'

FP16 = """g (float16[B,64] x) => (float16[B,128] y) {
  [mm] h = MatMul(x, w)
  [bias] y = Add(h, b)
}"""
INT8 = """g (float16[B,64] x) => (float16[B,128] y) {
  [x_q] xq = QuantizeLinear(x, s, z)
  [x_dq] xd = DequantizeLinear(xq, s, z)
  [w_dq] wd = DequantizeLinear<axis = 1>(w8, ws)
  [mm] h = MatMul(xd, wd)
  [bias] y = Add(h, b)
}"""
WEIGHT_ONLY = """g (float16[B,64] x) => (float16[B,128] y) {
  [w_dq] wd = DequantizeLinear<axis = 1>(w8, ws)
  [mm] h = MatMul(x, wd)
  [bias] y = Add(h, b)
}"""
ATTENTION = """g (float16[B,2,64,32] q, float16[B,2,32,64] k, float16[B,2,64,32] v) => (float16[B,2,64,32] y) {
  [qs] q1 = Mul(q, r)
  [ks] k1 = Mul(k, r)
  [qk] a = MatMul(q1, k1)
  [sm] p = Softmax<axis = -1>(a)
  [pv] y = MatMul(p, v)
}"""
TEXTS = {"fp16": FP16, "int8": INT8, "weight_only": WEIGHT_ONLY, "attention": ATTENTION}


def constants() -> Arrays:
    """Every constant that the texts name, always the same values."""
    random = np.random.default_rng(0)
    return {
        "w": random.normal(size=(64, 128)).astype(np.float16),
        "b": random.normal(size=128).astype(np.float16),
        "w8": random.integers(-127, 128, size=(64, 128)).astype(np.int8),
        "ws": random.uniform(0.001, 0.01, size=128).astype(np.float16),
        "s": np.asarray(0.02, np.float16),
        "z": np.asarray(0, np.int8),
        "r": np.asarray(0.42, np.float16),
    }


@pytest.fixture
def make_model(tmp_path: Path) -> ModelMaker:
    """Save a model, by the name of its text or by the text, and give its path."""

    def make(text: str, **save: Any) -> Path:
        model = ir.from_onnx_text(_HEADER + TEXTS.get(text, text), initializers=_used(TEXTS.get(text, text)))
        path = tmp_path / "model.onnx"
        ir.save(model, path, **save)
        return path

    return make


def _used(text: str) -> list[ir.TensorProtocol]:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return [ir.Tensor(array, name=name) for name, array in constants().items() if name in words]
