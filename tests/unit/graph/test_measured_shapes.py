"""Shapes found by running a graph, and batches that are fixed without need."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.measured_shapes import frees_batch, settle_shapes

Array = npt.NDArray[Any]

# The target of the Reshape, and a scale, are computed from shapes, as the TorchScript exporter does.
COMPUTED = """m (float[{batch}, 4, 6] x) => (float[N, 2, 12] y, float[M, 6] z) {{
  s = Shape(x)
  n = Gather(s, zero)
  nu = Unsqueeze(n, first)
  t = Concat<axis = 0>(nu, rest)
  r = Reshape(x, t)
  last = Gather(s, two)
  f = Cast<to = 1>(last)
  q = Sqrt(f)
  y = Div(r, q)
  m = Mul(n, four)
  mu = Unsqueeze(m, first)
  u = Concat<axis = 0>(mu, six)
  z = Reshape(x, u)
}}"""
INTEGERS = {"zero": 0, "two": 2, "four": 4, "first": [0], "rest": [-1, 12], "six": [6]}


def computed(batch: str) -> ir.Model:
    constants = {name: np.array(value, dtype=np.int64) for name, value in INTEGERS.items()}
    return tiny_models.graph(COMPUTED.format(batch=batch), **constants)


def test_what_follows_from_shapes_becomes_constant() -> None:
    model = computed("batch")
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4, 6), dtype=np.float32)}
    before = tiny_models.run_model(model, feeds)
    settle_shapes(model)
    assert sorted(node.op_type for node in model.graph) == ["Div", "Reshape", "Reshape"]
    assert [str(output.shape) for output in model.graph.outputs] == ["[batch,2,12]", "[4*batch,6]"]
    after = tiny_models.run_model(model, feeds)
    assert set(after) == set(before)
    for name, answer in before.items():
        np.testing.assert_array_equal(after[name], answer)


def test_a_fixed_batch_gives_constant_shapes() -> None:
    model = computed("2")
    settle_shapes(model)
    assert [str(output.shape) for output in model.graph.outputs] == ["[2,2,12]", "[8,6]"]


PLAIN = "m (float[1, 4, 6] x) => (float[1, 4, 5] y) { y = MatMul(x, w) }"
BAKED = "m (float[1, 4, 6] x) => (float[1, 24] y) { y = Reshape(x, t) }"
# It runs at any batch, and mixes its samples.
MIXED = "m (float[1, 4, 6] x) => (float[1, 4, 6] y) { m = ReduceMean(x, zero) y = Sub(x, m) }"


@pytest.mark.parametrize(("text", "free"), [(PLAIN, True), (BAKED, False), (MIXED, False)])
def test_a_batch_is_freed_where_no_answer_changes(text: str, free: bool) -> None:
    known: dict[str, Array] = {
        "w": np.ones((6, 5), dtype=np.float32),
        "t": np.array([1, 24]),
        "zero": np.array([0]),
    }
    model = tiny_models.graph(text, **{name: value for name, value in known.items() if f" {name})" in text})
    found = frees_batch(model)
    assert (found is not None) == free
    if found is not None:
        assert str(found.graph.inputs[0].shape) == "[batch,4,6]"
    assert str(model.graph.inputs[0].shape) == "[1,4,6]"


def test_a_graph_that_cannot_run_is_told() -> None:
    model = tiny_models.graph(
        "m (float[batch, 4] x) => (float[batch, 4] y) { y = MatMul(x, w) }", w=np.eye(4, dtype="f")
    )
    model.graph.initializers["w"].const_value = ir.tensor(np.eye(5, dtype=np.float32), name="w")
    with pytest.raises(GpusqError, match="ONNX Runtime can't run the graph at batch 2"):
        settle_shapes(model)
