"""PackProjections and FlattenTokens: the same numbers, from fewer products and from lists of tokens."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from tiny_models import ATTENTION, graph, run_model

from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.passes.drop_no_ops import DropNoOps
from gpusq_deploy.graph.passes.flatten_tokens import FlattenTokens
from gpusq_deploy.graph.passes.fold_constants import FoldConstants
from gpusq_deploy.graph.passes.merge_qkv import MergeQkv, find_projections

Array = npt.NDArray[np.float32]

MLP = """
mlp (float[batch, 3, 2, 8] x) => (float[batch, 3, 2, 8] y) {
  normed = LayerNormalization<axis = 3>(x, gain, shift)
  first = MatMul(normed, w1)
  biased = Add(first, b1)
  active = Relu(biased)
  second = MatMul(active, w2)
  y = Add(second, x)
}"""


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def attention(text: str = ATTENTION) -> ir.Model:
    weights = {f"w{name}": random(8, 8, seed=index) for index, name in enumerate("qkv")}
    heads = np.array([0, 0, 2, 4])
    return run_passes(graph(text, **weights, bq=random(8, seed=9), heads=heads), [Clean()])


def mlp(text: str = MLP) -> ir.Model:
    constants = {"w1": random(8, 16), "w2": random(16, 8), "b1": random(16), "gain": random(8), "shift": random(8)}
    return run_passes(graph(text, **constants), [Clean()])


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_three_projections_become_one_and_the_answers_stay() -> None:
    model = attention()
    triples = find_projections(model)
    assert [triple.nodes for triple in triples] == [("qq", "kk", "vv")]
    packed = run_passes(model, [MergeQkv(triples)])
    assert operators(packed)["MatMul"] == operators(model)["MatMul"] - 2
    feeds = {"x": random(3, 5, 8)}
    np.testing.assert_allclose(run_model(packed, feeds)["y"], run_model(model, feeds)["y"], rtol=1e-5, atol=1e-6)
    assert [(layer.node, layer.n, layer.k) for layer in weighted_layers(packed)] == [("qq_and_kk_and_vv", 24, 8)]
    assert find_projections(packed) == ()
    assert MergeQkv(triples).run(packed) == 0


def test_what_is_not_chosen_stays() -> None:
    model = attention()
    assert operators(run_passes(model, [MergeQkv(())])) == operators(model)


@pytest.mark.parametrize(
    "change",
    [
        ("MatMul(x, wv)", "MatMul(x, wk)"),
        ("kr = Reshape(k, heads)", "kr = Reshape(k, other)"),
        ("[kk] k = MatMul(x, wk)", "n = Neg(x)\n  [kk] k = MatMul(n, wk)"),
        ("shares = Softmax(scores)", "shares = Add(scores, scores)"),
        ("kt = Transpose<perm = [0, 2, 1, 3]>(kr)", "kt = Transpose<perm = [0, 2, 1, 3]>(vr)"),
    ],
    ids=["shared weight", "other heads", "other input", "no softmax", "one read twice"],
)
def test_what_is_no_triple_is_not_found(change: tuple[str, str]) -> None:
    text = ATTENTION.replace(*change)
    assert text != ATTENTION
    constants = {f"w{name}": random(8, 8, seed=index) for index, name in enumerate("qkv")}
    shapes = {"heads": np.array([0, 0, 2, 4]), "other": np.array([0, 0, 4, 2])}
    try:
        model = run_passes(graph(text, **constants, bq=random(8), **shapes), [Clean()])
    except Exception as error:  # onnx's own shape inference refuses the change
        pytest.skip(f"not a graph: {error}")
    assert find_projections(model) == ()


@pytest.mark.parametrize("residual", [True, False])
def test_an_mlp_on_an_image_runs_on_a_list(*, residual: bool) -> None:
    model = mlp(MLP if residual else MLP.replace("Add(second, x)", "Relu(second)"))
    flat = run_passes(model, [FlattenTokens()])
    assert operators(flat)["Reshape"] == 2
    ranks = {node.op_type: len(node.outputs[0].shape or ()) for node in flat.graph if node.op_type != "Reshape"}
    assert (ranks["LayerNormalization"], ranks["MatMul"]) == (3, 3)
    feeds = {"x": random(3, 3, 2, 8)}
    np.testing.assert_allclose(run_model(flat, feeds)["y"], run_model(model, feeds)["y"], rtol=1e-5, atol=1e-6)
    assert FlattenTokens().run(flat) == 0


@pytest.mark.parametrize(
    "change",
    [
        ("second = MatMul(active, w2)", "second = Softmax<axis = 1>(active)"),
        ("y = Add(second, x)", "y = Add(second, active)"),
    ],
    ids=["one product", "read twice"],
)
def test_what_is_no_mlp_stays(change: tuple[str, str]) -> None:
    text = MLP.replace(*change).replace("float[batch, 3, 2, 8] y", "float[batch, 3, 2, N] y")
    constants = {"w1": random(8, 8), "w2": random(8, 8), "b1": random(8), "gain": random(8), "shift": random(8)}
    model = run_passes(graph(text, **constants), [Clean()])
    assert operators(run_passes(model, [FlattenTokens()])) == operators(model)


def test_a_mask_that_masks_nothing_goes_and_a_bias_of_zeros_stays() -> None:
    text = "g (float[batch, 2, 4] x) => (float[batch, 2, 4] y) { a = Add(x, mask)\n b = Add(a, bias)\n y = Relu(b) }"
    model = graph(text, mask=np.zeros((1, 2, 4), np.float32), bias=np.zeros(4, np.float32))
    dropped = run_passes(model, [Clean(), DropNoOps()])
    assert [node.op_type for node in dropped.graph] == ["Add", "Relu"]
    assert dropped.graph[0].inputs[1] is dropped.graph.initializers["bias"]


def test_zeros_that_widen_stay() -> None:
    text = "g (float[batch, 1, 4] x) => (float[batch, 2, 4] y) { a = Add(x, mask)\n y = Relu(a) }"
    model = graph(text, mask=np.zeros((1, 2, 4), np.float32))
    assert operators(run_passes(model, [Clean(), DropNoOps()]))["Add"] == 1


def test_a_product_of_constants_is_worked_out_and_a_weight_stays() -> None:
    text = """g (float[batch, 4] x) => (float[batch, 4] y) {
      turned = Transpose<perm = [1, 0]>(w)
      queries = MatMul(q, turned)
      shares = Softmax(queries)
      z = MatMul(x, turned)
      y = MatMul(z, shares)
    }"""
    model = graph(text, w=random(4, 4), q=random(4, 4, seed=1))
    found = run_passes(model, [Clean(), FoldConstants()])
    assert [node.op_type for node in found.graph] == ["Transpose", "MatMul", "MatMul"]
    assert "w" in found.graph.initializers
    feeds = {"x": random(3, 4)}
    np.testing.assert_allclose(run_model(found, feeds)["y"], run_model(model, feeds)["y"], rtol=1e-5)
