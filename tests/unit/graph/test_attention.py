"""Attentions are found by what they compute, and what only looks like one is not."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models

from gpusq_deploy.graph.attention import find_attentions, tensors_of
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.pipelines import CANONICAL

TEXT = """
g (float[B,2,8,4] q, float[B,2,4,8] k, float[B,2,8,4] v, float[B,2,8,8] mask) => (float[B,8,6] y) {
  [first] scores = MatMul(q, k)
  scaled = Mul(scores, s)
  masked = Add(scaled, mask)
  p = Softmax(masked)
  [second] context = MatMul(p, v)
  turned = Transpose<perm = [0, 2, 1, 3]>(context)
  flat = Reshape(turned, shape)
  [proj] y = MatMul(flat, w)
}
"""
CONSTANTS = {"s": np.array(0.5, np.float32), "shape": np.array([-1, 8, 8]), "w": np.ones((8, 6), np.float32)}


def test_an_attention_with_scale_and_mask_is_found_with_its_sizes_and_its_output_layer() -> None:
    (found,) = find_attentions(tiny_models.graph(TEXT, **CONSTANTS))
    assert (found.module, found.scores, found.context, found.output) == ("first", "first", "second", "proj")
    assert dict(tensors_of(found)) == {"query": "q", "key": "k", "softmax": "p", "value": "v"}
    assert (found.tokens, found.head) == (8, 4)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("MatMul(q, k)", "MatMul(q, c)"),
        ("MatMul(p, v)", "MatMul(v, p)"),
        ("MatMul(p, v)", "MatMul(p, v2)"),
        ("Mul(scores, s)", "Relu(scores)"),
    ],
    ids=["a layer", "softmax on the right", "a constant value", "something else on the scores"],
)
def test_what_only_looks_like_an_attention_is_not_one(before: str, after: str) -> None:
    text = TEXT.replace(before, after)
    constants = {**CONSTANTS, "c": np.ones((2, 4, 8), np.float32), "v2": np.ones((2, 8, 4), np.float32)}
    assert find_attentions(tiny_models.graph(text, **constants)) == ()


def test_a_result_that_two_nodes_read_has_no_output_layer() -> None:
    text = TEXT.replace("y = MatMul(flat, w)", "y = MatMul(flat, w)\n  other = Relu(flat)")
    (found,) = find_attentions(tiny_models.graph(text, **CONSTANTS))
    assert found.output == ""


@pytest.mark.slow
def test_timms_attention_is_found_as_torch_exports_it() -> None:
    (found,) = find_attentions(run_passes(tiny_models.exported_vit().model, CANONICAL))
    assert found.module == "blocks.0.attn"
    assert (found.tokens, found.head) == (17, 64)
    assert found.output
