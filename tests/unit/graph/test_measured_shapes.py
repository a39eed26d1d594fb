"""Shapes found by running a graph, and batches that are fixed without need."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.measured_shapes import frees_batch, settle_branches, settle_shapes

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


# As torch's exporter writes a squeeze of an axis that may be 1; the bodies take a tensor and a constant from outside.
SQUEEZED = """m (float[{batch}, 1, 6] x) => (float y) {{
  s = Shape(x)
  n = Gather(s, place)
  c = Equal(n, one)
  r = Relu(x)
  z = If (c) <
    then_branch = t () => (float[N, 6] u) {{ a = Constant<value = int64[1] {{1}}> () u = Squeeze(r, a) }},
    else_branch = e () => (float[N, 1, 6] v) {{ v = Identity(r) }}
  >
  d = Shape(z)
  rank = Size(d)
  two = Constant<value = int64 {{2}}> ()
  flat = Equal(rank, two)
  y = If (flat) <
    then_branch = t () => (float[N, 6] u) {{ a = Add(z, f) u = Neg(a) }},
    else_branch = e () => (float[N, 1, 6] v) {{ v = Identity(z) }}
  >
}}"""


def squeezed(batch: str, place: int) -> ir.Model:
    given = {"place": np.array(place), "one": np.array(1), "f": np.arange(6, dtype=np.float32)}
    return tiny_models.graph(SQUEEZED.format(batch=batch), **given)


@pytest.mark.parametrize(("batch", "place", "settled"), [("batch", 1, 2), ("2", 0, 2), ("batch", 2, 2)])
def test_a_branch_that_shapes_decide_is_put_in_place(batch: str, place: int, settled: int) -> None:
    model = squeezed(batch, place)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 1, 6), dtype=np.float32)}
    before = tiny_models.run_model(model, feeds)
    assert settle_branches(model) == settled
    assert "If" not in {node.op_type for node in model.graph}
    after = tiny_models.run_model(model, feeds)
    assert list(after) == list(before) == ["y"]
    np.testing.assert_array_equal(after["y"], before["y"])
    assert before["y"].ndim == (2 if place == 1 else 3)


def test_a_branch_that_the_batch_or_data_decide_is_left() -> None:
    model = squeezed("batch", 0)  # one image would be squeezed
    assert settle_branches(model) == 0
    text = """m (float[batch, 6] x) => (float[batch, 6] y) {
      t = ReduceMax<keepdims = 0>(x)
      c = Greater(t, zero)
      y = If (c) <
        then_branch = t () => (float[batch, 6] u) { u = Relu(x) },
        else_branch = e () => (float[batch, 6] v) { v = Neg(x) }
      >
    }"""
    model = tiny_models.graph(text, zero=np.array(0, dtype=np.float32))
    assert settle_branches(model) == 0
    assert "If" in {node.op_type for node in model.graph}
