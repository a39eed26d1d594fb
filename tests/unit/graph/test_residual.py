"""Residual adds: found where they are, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.graph.residual import find_residuals

W = np.eye(4, dtype=np.float32)


def found(text: str, **constants: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[tuple[str, str, str]]:
    model: ir.Model = tiny_models.graph(text, **constants)
    return [(residual.node, residual.skip, residual.branch) for residual in find_residuals(model)]


@pytest.mark.parametrize("inputs", ["x, b", "b, x"])
def test_a_block_s_input_and_what_it_adds_to_it_either_way_round(inputs: str) -> None:
    text = f"g (float[B,4] x) => (float[B,4] y) {{\n [fc] b = MatMul(x, w)\n [sum] y = Add({inputs})\n}}"
    assert found(text, w=W) == [("sum", "x", "b")]


def test_an_add_without_a_product_between_is_none() -> None:
    text = "g (float[B,4] x) => (float[B,4] y) {\n b = Mul(x, x)\n [sum] y = Add(x, b)\n}"
    assert found(text) == []


def test_a_bias_a_position_table_and_two_branches_are_none() -> None:
    text = """g (float[B,4] x) => (float[B,4] y) {
      a = MatMul(x, w)
      b = MatMul(x, v)
      [bias] c = Add(a, t)
      [both] y = Add(c, b)
    }"""
    assert found(text, w=W, v=W, t=np.ones(4, np.float32)) == []


@pytest.mark.slow
def test_a_vision_transformer_has_two_to_a_block() -> None:
    residuals = find_residuals(tiny_models.exported_vit().model)
    assert len(residuals) == 2
    assert residuals[0].branch != residuals[1].skip
    assert not any(residual.quantized for residual in residuals)


@pytest.mark.slow
def test_a_swin_has_two_to_a_block_for_all_its_masks_and_biases() -> None:
    assert len(find_residuals(tiny_models.exported_swin())) == 2 * 3
