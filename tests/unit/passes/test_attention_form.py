"""FoldShapes and AttentionScale: the same numbers, in the form that TensorRT fuses best."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from tiny_models import DYNAMIC, STATIC, exported_vit, graph, images, run_model

from gpusq_deploy.engines.builder import BuildSettings, build_engine
from gpusq_deploy.engines.layers import totals
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.shapes import dimensions
from gpusq_deploy.graph.values import is_constant
from gpusq_deploy.passes.attention_scale import AttentionScale
from gpusq_deploy.passes.base import run_passes
from gpusq_deploy.passes.cast_remainder import CastRemainder
from gpusq_deploy.passes.fold_shapes import FoldShapes
from gpusq_deploy.targets import find_target

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
        save_model(run_passes(model, [*form, CastRemainder("fp16")]), path)
        settings = BuildSettings(batch=STATIC if static else DYNAMIC)
        found = totals(build_engine(path, find_target("a100"), settings).layers)
        assert found.attention_fused == 1
        kernels.append(found.kernels)
    assert kernels[1] <= kernels[0]


def test_a_key_with_one_transpose_is_matched() -> None:
    model = graph(DIRECT, s=np.array(0.5, np.float32))
    formed = run_passes(model, FORM)
    assert [node.op_type for node in formed.graph] == ["Mul", "Transpose", "MatMul"]
    q, k = (np.random.default_rng(seed).standard_normal((3, 2, 8, 4), dtype=np.float32) for seed in (1, 2))
    assert np.array_equal(run_model(formed, {"q": q, "k": k})["scores"], run_model(model, {"q": q, "k": k})["scores"])


OTHER_AXES = DIRECT.replace("[0, 1, 3, 2]", "[0, 2, 3, 1]").replace("[batch, 2, 8, 4] k", "[batch, 8, 2, 4] k")
READ_TWICE = DIRECT.replace("MatMul(q, scaled)", "MatMul(q, scaled)\n  other = Relu(scaled)")
HALF = np.array(0.5, np.float32)


@pytest.mark.parametrize(
    ("text", "scale"),
    [(OTHER_AXES, HALF), (READ_TWICE, HALF), (DIRECT, np.full((1, 1, 4, 1), 0.5, np.float32))],
    ids=["other axes exchanged", "scaled key read twice", "a scale per channel"],
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
