"""Weights that share a tensor: fewer of them, and the compiler makes the same kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_families
import tiny_models

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.engines.cost import graph_cost, layers_at
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.frontend.export.onnx_export import export_float_model
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.weightless import cut_constants, share_weights


def kernels(model: ir.Model, folder: Path, batch: int) -> int:
    save_model(model, folder / "model.onnx")
    layers = layers_at(folder / "model.onnx", find_target("a100"), batch, backend="tensorrt-rtx")
    return graph_cost(layers, batch=batch).kernels


def weight_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["swin", "transformers-vit", "detr", "deformable-detr"])
def test_a_light_graph_compiles_to_as_many_kernels(family: str, tmp_path: Path) -> None:
    batch = BatchRange(minimum=2, optimum=2, maximum=2)
    model = run_passes(export_float_model(tiny_families.checkpoint(family), batch=batch), CANONICAL)
    light = model.clone()
    assert share_weights(light) > 0
    assert weight_bytes(light) < weight_bytes(model)
    assert kernels(light, tmp_path, 2) == kernels(model, tmp_path, 2)


def weights_left(text: str, *, answers: str = "", size: int = 64) -> set[str]:
    """What is left of equal weights called w0, w1, … and of what the graph answers."""
    names = [name for name in ("w0", "w1", "w2") if name in text]
    model = tiny_models.graph(text, **{name: np.full((size, size), 0.5, np.float32) for name in names})
    if answers:
        model.graph.outputs.append(model.graph.initializers[answers])
    share_weights(model)
    model.clone()  # a graph that lacks what it answers can't be copied
    return set(model.graph.initializers)


CHAIN = "g (float[B,64] x) => (float[B,64] y) { h = MatMul(x, w0)  y = MatMul(h, w1) }"


def test_weights_of_different_inputs_share_one_tensor() -> None:
    assert weights_left(CHAIN) == {"w0"}


def test_constants_of_one_input_keep_their_own() -> None:
    """Equal adds of one value would be one add."""
    text = "g (float[64,64] x) => (float[64,64] y) { a = Add(x, w0)  b = Add(x, w1)  y = Sub(a, b) }"
    assert weights_left(text) == {"w0", "w1"}


def test_products_of_one_input_share_with_none() -> None:
    text = """g (float[64,64] x) => (float[64,64] y) {
        a = MatMul(x, w0)  b = MatMul(x, w1)  c = Sub(a, b)  y = MatMul(c, w2)
    }"""
    assert weights_left(text) == {"w0", "w1", "w2"}


def test_small_constants_and_answers_keep_their_own() -> None:
    assert weights_left(CHAIN.replace("64", "31"), size=31) == {"w0", "w1"}
    assert weights_left(CHAIN, answers="w1") == {"w0", "w1"}


def test_constants_are_cut_to_what_fp16_holds() -> None:
    large = np.array([1e5, -1e9, np.inf, -np.inf, 3.0], np.float32)
    model = tiny_models.graph("g (float[5] x) => (float[5] y) { y = Add(x, c) }", c=large)
    assert cut_constants(model) == 1
    cut = model.graph.initializers["c"].const_value
    assert cut is not None
    assert cut.numpy().tolist() == [65504, -65504, np.inf, -np.inf, 3.0]
    assert cut_constants(model) == 0
