"""FoldShapes and AttentionScale: the same numbers, in the form that TensorRT fuses best."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from tiny_models import DYNAMIC, STATIC, exported_vit, graph, images, run_model

from gpusq_deploy.engines.builder import build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.layer_classes import totals
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.passes.attention_scale import AttentionScale
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.passes.fold_shapes import FoldShapes
from gpusq_deploy.graph.shapes import dimensions
from gpusq_deploy.graph.values import array_of, is_constant

FORM = (FoldShapes(), AttentionScale())

DIRECT = """
attention (float[batch, 2, 8, 4] q, float[batch, 2, 8, 4] k) => (float[batch, 2, 8, 8] scores) {
  turned = Transpose<perm = [0, 1, 3, 2]>(k)
  scaled = Mul(turned, s)
  scores = MatMul(q, scaled)
}
"""


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_the_answers_are_bit_identical(*, static: bool) -> None:
    """Each operator gets the same numbers in the same shape; the scale is multiplied before or after a transpose."""
    model = exported_vit(static=static).model
    formed = run_passes(model, FORM)
    batch = images(4)
    assert np.array_equal(run_model(formed, {"input": batch})["output"], run_model(model, {"input": batch})["output"])


@pytest.mark.slow
def test_every_reshape_gets_a_constant_target_and_every_value_a_shape() -> None:
    formed = run_passes(exported_vit().model, FORM)
    assert all(is_constant(node.inputs[1]) for node in formed.graph if node.op_type == "Reshape")
    assert operators(formed)["Slice"] == operators(exported_vit().model)["Slice"] - 3
    unknown = [value.name for node in formed.graph for value in node.outputs if dimensions(value, 7) is None]
    assert unknown == ["val_63", "val_64"]


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_keys_are_scaled_before_their_transpose(*, static: bool) -> None:
    formed = run_passes(exported_vit(static=static).model, FORM)
    softmax = next(node for node in formed.graph if node.op_type == "Softmax")
    value = softmax.inputs[0]
    for operator in ("MatMul", "Transpose", "Mul"):
        assert value is not None
        node = value.producer()
        assert node is not None
        assert node.op_type == operator
        value = node.inputs[1] if operator == "MatMul" else node.inputs[0]


@pytest.mark.slow
def test_a_second_run_changes_nothing() -> None:
    counts: list[int] = []
    run_passes(run_passes(exported_vit().model, FORM), FORM, after=lambda _step, _model, count: counts.append(count))
    assert counts == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_tensorrt_rtx_makes_no_more_kernels_of_it(tmp_path: Path, *, static: bool) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform", exc_type=ImportError)
    model = exported_vit(static=static).model
    kernels: list[int] = []
    for form in ((), FORM):
        path = tmp_path / f"{len(form)}.onnx"
        save_model(run_passes(model, [*form, CastToFloatType("fp16")]), path)
        settings = BuildSettings(batch=STATIC if static else DYNAMIC)
        found = totals(build_engine(path, find_target("a100"), settings).layers)
        assert found.attention_fused == 1
        kernels.append(found.kernels)
    assert kernels[1] <= kernels[0]


def random_inputs(model: ir.Model) -> dict[str, npt.NDArray[np.float32]]:
    shapes = {str(value.name): dimensions(value, 3) or () for value in model.graph.inputs}
    random = np.random.default_rng(0)
    return {name: random.standard_normal(size, np.float32) for name, size in shapes.items()}


def test_a_key_with_one_transpose_is_matched() -> None:
    text = DIRECT.replace("MatMul(q, scaled)", "MatMul(other, scaled)").replace(
        "turned =", "other = Mul(q, s)\n  turned ="
    )
    model = run_passes(graph(text, s=HALF), [Clean()])
    formed = run_passes(model, FORM)
    assert [node.op_type for node in formed.graph] == ["Mul", "Mul", "Transpose", "MatMul"]
    feeds = random_inputs(model)
    # The product gets the same numbers: the root of a half times a half is that half.
    assert np.array_equal(run_model(formed, feeds)["scores"], run_model(model, feeds)["scores"])


HALF = np.array(0.5, np.float32)
ON_QUERY = """
attention (float[batch, 2, 8, 4] q, float[batch, 2, 8, 4] k) => (float[batch, 2, 8, 8] scores) {
  scaled = Mul(q, s)
  turned = Transpose<perm = [0, 1, 3, 2]>(k)
  scores = MatMul(scaled, turned)
}
"""
ON_SCORES = """
attention (float[batch, 8, 4] query, float[batch, 8, 4] k) => (float[batch, 8, 8] scores) {
  turned = Transpose<perm = [0, 2, 1]>(k)
  product = MatMul(query, turned)
  smaller = Div(product, s)
  scores = Softmax<axis = -1>(smaller)
}
"""
EARLY_KEY = """
attention (float[batch, 2, 8, 4] q, float[batch, 2, 8, 4] k) => (float[batch, 2, 8, 8] scores) {
  scaled = Mul(s, k)
  turned = Transpose<perm = [0, 1, 3, 2]>(scaled)
  scores = MatMul(q, turned)
}
"""
TURNED_KEYS = {
    "heads brought forward too": ON_QUERY.replace("[0, 1, 3, 2]", "[0, 2, 3, 1]").replace(
        "[batch, 2, 8, 4] k", "[batch, 8, 2, 4] k"
    ),
}


@pytest.mark.parametrize(
    ("text", "scale", "total"),
    [
        (ON_QUERY, 0.3, 0.3),
        (ON_SCORES, 5.6, 1 / 5.6),
        (EARLY_KEY, 0.3, 0.3),
        (ON_QUERY.replace("(k)", "(k)\n  late = Mul(turned, s)").replace("scaled, turned", "scaled, late"), 0.5, None),
        (EARLY_KEY.replace("q, turned", "q, late").replace("(scaled)", "(scaled)\n  late = Div(turned, s)"), 0.5, 1.0),
        *((text, 0.3, 0.3) for text in TURNED_KEYS.values()),
    ],
    ids=["on the query", "on the scores", "on the key", "on both, the key's late", "twice on the key", *TURNED_KEYS],
)
def test_one_factor_becomes_its_root_on_both_sides(text: str, scale: float, total: float | None) -> None:
    model = run_passes(graph(text, s=np.array(scale, np.float32)), [Clean()])
    formed = run_passes(model, [AttentionScale()])
    product = next(node for node in formed.graph if node.op_type == "MatMul")
    left = source_of(product.inputs[0], "Mul")
    right = source_of(source_of(product.inputs[1], "Transpose").inputs[0], "Mul")
    factors = [float(array_of(given)) for node in (left, right) if (given := node.inputs[1]) is not None]
    expected = [scale, scale] if total is None else [total**0.5] * 2
    assert factors == pytest.approx(expected)
    feeds = random_inputs(model)
    np.testing.assert_allclose(run_model(formed, feeds)["scores"], run_model(model, feeds)["scores"], rtol=0, atol=2e-6)
    assert AttentionScale().run(formed) == 0


def source_of(value: ir.Value | None, operator: str) -> ir.Node:
    node = None if value is None else value.producer()
    assert node is not None
    assert node.op_type == operator
    return node


OTHER_AXES = DIRECT.replace("[0, 1, 3, 2]", "[0, 3, 2, 1]").replace("[batch, 2, 8, 4] k", "[batch, 8, 4, 2] k")
READ_TWICE = DIRECT.replace("MatMul(q, scaled)", "MatMul(q, scaled)\n  other = Relu(turned)")
SCORES_READ_TWICE = ON_SCORES.replace("scores = Softmax", "other = Relu(product)\n  scores = Softmax")
UNSCALED = ON_QUERY.replace("Mul(q, s)", "Relu(q)")
INVERSE = ON_QUERY.replace("Mul(q, s)", "Div(s, q)")
PER_HEAD = np.full((2, 1, 1), 0.5, np.float32)


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        (OTHER_AXES, HALF),
        (READ_TWICE, HALF),
        (SCORES_READ_TWICE, HALF),
        (UNSCALED, HALF),
        (INVERSE, HALF),
        (ON_QUERY, -HALF),
        (ON_QUERY, 0 * HALF),
        (DIRECT, np.full((1, 1, 4, 1), 0.5, np.float32)),
        (ON_QUERY, PER_HEAD),
    ],
    ids=[
        "other axes exchanged",
        "transposed key read twice",
        "scores read twice",
        "no factor",
        "a scalar divided by the query",
        "a negative factor",
        "a factor of zero",
        "a scale per channel",
        "a scale per head",
    ],
)
def test_other_forms_are_left_alone(text: str, scale: npt.NDArray[np.float32]) -> None:
    assert AttentionScale().run(graph(text, s=scale)) == 0


def test_a_target_that_depends_on_data_is_left_alone() -> None:
    model = graph(
        """
reshape (float[batch, 4] x, int64[2] target) => (float[a, b] y) {
  y = Reshape(x, target)
}
"""
    )
    assert FoldShapes().run(model.clone()) == 0
    assert not is_constant(next(iter(model.graph)).inputs[1])


def test_two_dimensions_that_follow_the_batch_are_left_alone() -> None:
    model = graph(
        """
reshape (float[batch, 4] x) => (float[a, b, c] y) {
  sizes = Shape(x)
  first = Slice(sizes, zero, one)
  target = Concat<axis = 0>(one, first, first)
  y = Reshape(x, target)
}
""",
        zero=np.array([0]),
        one=np.array([1]),
    )
    assert FoldShapes().run(model.clone()) == 0
