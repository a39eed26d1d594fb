"""Residual adds: found where they are, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.residual import branches_of_nodes, find_residuals

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


def test_each_layer_works_for_the_innermost_add_that_its_branch_leads_to() -> None:
    text = """g (float[B,4] x, float[B,4] m) => (float[B,4] y) {
      [stem] s = MatMul(x, w)
      [memory] k = MatMul(m, w)
      [up] u = MatMul(s, w)
      [inner] i = MatMul(u, w)
      [add1] v = Add(u, i)
      [both] b = Add(v, k)
      [down] d = MatMul(b, w)
      [add2] t = Add(s, d)
      [head] y = MatMul(t, w)
    }"""
    model = tiny_models.graph(text, w=W)
    branches = branches_of_nodes(model, ["stem", "memory", "up", "inner", "down", "head"])
    adds = {node: residual.node for node, residual in branches.items()}
    # What leads to both sides of an add, or to none, works for none.
    assert adds == {"memory": "add2", "up": "add2", "inner": "add1", "down": "add2"}
    assert (branches["down"].branch, branches["down"].total) == ("d", "t")


@pytest.mark.slow
def test_the_layers_of_a_vision_transformer_work_for_their_own_block() -> None:
    model = tiny_models.exported_vit().model
    layers = {layer.node: layer.layer for layer in weighted_layers(model)}
    branches = branches_of_nodes(model, layers)
    first, second = find_residuals(model)
    adds = {layers[node]: residual.node for node, residual in branches.items()}
    assert adds == {
        "blocks.0.attn.qkv": first.node,
        "blocks.0.attn.proj": first.node,
        "blocks.0.mlp.fc1": second.node,
        "blocks.0.mlp.fc2": second.node,
    }
