"""Graphs that travel without their weights: the same graph, weights of the same kind, and ONNX Runtime runs it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from gpusq_deploy.artifacts.base import json_from_value, read_value
from gpusq_deploy.benchmarks.gpu import models
from gpusq_deploy.benchmarks.gpu.graph_kit import PRECISIONS, index_of
from gpusq_deploy.benchmarks.gpu.graphs import (
    Graph,
    Left,
    Variant,
    Variants,
    drawn,
    fill,
    leave_out,
    sparse_axis,
    variants_of,
)
from gpusq_deploy.benchmarks.gpu.runs import Ground
from gpusq_deploy.graph.files import load_model
from gpusq_deploy.graph.values import array_of

K, N = 256, 128
MODEL = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B,256] x) => (float[B,128] y) {
  [w_dq] wd = DequantizeLinear<axis = 1>(w, ws)
  [mm] h = MatMul(x, wd)
  [add] hb = Add(h, big)
  [fc] y = MatMul(hb, v)
}"""


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A kit whose one graph has a 2:4 INT8 weight, a float one, and a large constant that isn't a weight."""
    random = np.random.default_rng(0)
    codes = np.where(np.arange(K)[:, None] % 4 < 2, random.integers(-90, 91, (K, N)), 0).astype(np.int8)
    arrays: dict[str, NDArray[Any]] = {
        "w": codes,
        "ws": random.uniform(0.001, 0.01, N).astype(np.float32),
        "big": np.arange(64 * N, dtype=np.float32).reshape(64, N),
        "v": random.normal(scale=0.02, size=(N, N)).astype(np.float32),
    }
    tensors: list[ir.TensorProtocol] = [ir.Tensor(array, name=name) for name, array in arrays.items()]
    ir.save(ir.from_onnx_text(MODEL, initializers=tensors), tmp_path / "whole.onnx")
    (tmp_path / "graphs").mkdir()
    leave_out(tmp_path / "whole.onnx", tmp_path / "graphs" / "g.onnx")
    variants = (Variant(name="G 2:4 INT8", graph="g"), Variant(name="G INT8", graph="g", dense=True))
    (tmp_path / "graphs" / "index.json").write_bytes(json_from_value(Variants(variants=variants)))
    return tmp_path


def test_weights_are_left_out_and_what_a_constant_holds_is_kept(kit: Path) -> None:
    left = {one.name: one for one in read_value(kit / "graphs" / "g.json", Graph).left}
    assert {name: (one.dtype, one.shape, one.axis) for name, one in left.items()} == {
        "w": ("INT8", (K, N), 0),
        "v": ("FLOAT", (N, N), None),
    }
    assert left["v"].rms == pytest.approx(0.02, rel=0.1)
    whole, light = ((kit / name).stat().st_size for name in ("whole.onnx", "graphs/g.onnx"))
    assert light < whole - K * N - 4 * N * N + 4000


def test_a_filled_graph_runs_and_has_weights_of_the_same_kind(kit: Path) -> None:
    for variant in variants_of(kit).variants:
        fill(kit, variant, kit / "filled.onnx")
        tensors = load_model(kit / "filled.onnx").graph.initializers
        codes, constant = array_of(tensors["w"]), array_of(tensors["big"])
        assert (codes.dtype.name, codes.shape) == ("int8", (K, N))
        most = int((codes.reshape(K // 4, 4, N) != 0).sum(axis=1).max())
        assert most == (4 if variant.dense else 2)
        np.testing.assert_array_equal(constant.ravel()[:3], [0, 1, 2])
        session = ort.InferenceSession(str(kit / "filled.onnx"), providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {"x": np.ones((64, K), np.float32)})
        assert np.isfinite(np.asarray(y)).all()
    first = (kit / "filled.onnx").read_bytes()
    fill(kit, variants_of(kit).variants[-1], kit / "filled.onnx")
    assert (kit / "filled.onnx").read_bytes() == first, "equal kits give equal models"


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_drawn_weights_have_their_size_and_their_zeros(axis: int | None) -> None:
    left = Left(name="w", dtype="FLOAT16", shape=(64, 128), rms=0.5, axis=axis)
    values = drawn(left, dense=False)
    assert sparse_axis(values) == axis
    assert float(np.sqrt(np.mean(values.astype(np.float64) ** 2))) == pytest.approx(0.5, rel=1e-3)
    assert sparse_axis(drawn(left, dense=True)) is None


def test_a_kit_without_models_has_none(tmp_path: Path) -> None:
    assert variants_of(tmp_path) == Variants()


def test_what_a_kit_was_to_hold_and_doesnt_is_said_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    built = Variant(name="ViT-S 24-FP16", graph="ViT-S-24-FP16", predicted_us={"8": 9.0})
    (tmp_path / "graphs" / "ViT-S-24-FP16.predicted.json").write_bytes(json_from_value(built))
    index = index_of(["ViT-S"], tmp_path / "graphs", {"ViT-S-fused-INT8": "no such recipe"})
    assert [one.name for one in index.variants] == ["ViT-S FP16", "ViT-S 2:4 FP16"]
    assert index.variants[0].predicted_us == {"8": 9.0}
    assert index.left_out["ViT-S fused INT8"] == "the kit lacks its graph: no such recipe"
    assert len(index.variants) + len(index.left_out) == len(PRECISIONS)
    (tmp_path / "graphs" / "index.json").write_bytes(json_from_value(index))
    ground = Ground(tmp_path, tmp_path, time.monotonic() + 9)
    assert set(models.items(ground)) == {f"ViT-S {precision.name}" for precision in PRECISIONS}
    (found,) = models.run("ViT-S fused INT8", ground)
    assert found.why_not == "the kit lacks its graph: no such recipe"
