"""FoldConstants, DropNoOps and WindowNorm: the same answers, from a graph in which Swin's attention is recognised."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
import torch
from tiny_models import DYNAMIC, STATIC, exported_swin, exported_vit, graph, run_model

from gpusq_deploy.engines.builder import build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.layer_classes import totals
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import Pass, run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.passes.drop_no_ops import DropNoOps
from gpusq_deploy.graph.passes.fold_constants import FoldConstants
from gpusq_deploy.graph.passes.fold_shapes import FoldShapes
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.window_norm import WindowNorm
from gpusq_deploy.graph.values import array_of, is_constant

FORM: tuple[Pass, ...] = (FoldConstants(), FoldShapes(), DropNoOps(), WindowNorm())


def noise(count: int, size: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, 3, size, size), dtype=np.float32)


def changes_of(model: ir.Model, passes: tuple[Pass, ...]) -> dict[str, int]:
    counts: dict[str, int] = {}
    run_passes(model, passes, after=lambda step, _model, count: counts.update({step.name: count}))
    return counts


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("static", "size", "moved"), [(True, 32, 3), (False, 32, 3), (False, 28, 1)], ids=["static", "dynamic", "padded"]
)
def test_a_swin_answers_the_same(*, static: bool, size: int, moved: int) -> None:
    model = exported_swin(static=static, size=size)
    formed = run_passes(model, FORM)
    assert changes_of(model, FORM)["window-norm"] == moved
    images = {"input": noise(4, size)}
    np.testing.assert_allclose(
        run_model(formed, images)["output"], run_model(model, images)["output"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_each_linear_of_a_window_reads_its_layer_norm() -> None:
    formed = run_passes(exported_swin(), FORM)
    producers = {node.outputs[0].name: node.op_type for node in formed.graph}
    qkv = [layer for layer in weighted_layers(formed) if layer.layer.endswith("qkv")]
    assert [producers[layer.input] for layer in qkv] == ["LayerNormalization"] * 3
    assert "Pad" not in operators(formed)


@pytest.mark.slow
def test_position_biases_and_masks_become_constants() -> None:
    formed = run_passes(exported_swin(), FORM)
    adds = [node for node in formed.graph if node.op_type == "Add"]
    values = [value for node in adds for value in node.inputs if value is not None]
    by_rank = Counter(len(value.shape or ()) for value in values if is_constant(value))
    assert by_rank[4] == 3
    assert by_rank[5] == 1


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_a_second_run_changes_nothing(*, static: bool) -> None:
    for model in (exported_swin(static=static), exported_swin(size=28), exported_vit(static=static).model):
        assert set(changes_of(run_passes(model, CANONICAL), CANONICAL).values()) == {0}


@pytest.mark.slow
@pytest.mark.parametrize("static", [False, True])
def test_tensorrt_rtx_fuses_every_attention(tmp_path: Path, *, static: bool) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform", exc_type=ImportError)
    kernels: list[int] = []
    for form in ((), CANONICAL):
        path = tmp_path / f"{len(form)}.onnx"
        save_model(run_passes(exported_swin(static=static), [*form, CastToFloatType("fp16")]), path)
        settings = BuildSettings(batch=STATIC if static else DYNAMIC)
        found = totals(build_engine(path, find_target("a100"), settings).layers)
        kernels.append(found.kernels)
    assert found.attention_fused == 3
    assert kernels[1] < kernels[0]


CHAIN = """
bias (float[batch, 2, 4, 4] scores) => (float[batch, 2, 4, 4] y) {
  picked = Gather<axis = 0>(table, index)
  square = Reshape(picked, shape)
  turned = Transpose<perm = [2, 0, 1]>(square)
  one = Unsqueeze(turned, axis)
  small = Sigmoid(one)
  y = Add(scores, small)
}
"""
CHAIN_CONSTANTS: dict[str, npt.NDArray[Any]] = {
    "table": np.random.default_rng(1).standard_normal((7, 2), dtype=np.float32),
    "index": np.arange(16) * 5 % 7,
    "shape": np.array([4, 4, 2]),
    "axis": np.array([0]),
}


def test_a_chain_behind_constants_becomes_one() -> None:
    model = graph(CHAIN, **CHAIN_CONSTANTS)
    formed = run_passes(model, [FoldConstants()])
    (node,) = formed.graph
    table, index = CHAIN_CONSTANTS["table"], CHAIN_CONSTANTS["index"]
    expected = np.empty((1, 2, 4, 4))
    for head in range(2):
        for place in range(16):
            expected[0, head, place // 4, place % 4] = 1 / (1 + np.exp(-float(table[index[place], head])))
    assert node.inputs[1] is not None
    np.testing.assert_allclose(array_of(node.inputs[1]), expected, rtol=1e-6)
    scores = {"scores": np.random.default_rng(2).standard_normal((3, 2, 4, 4), dtype=np.float32)}
    np.testing.assert_allclose(run_model(formed, scores)["y"], run_model(model, scores)["y"], rtol=0, atol=1e-6)


def test_a_product_of_constants_is_folded_and_a_weight_is_not() -> None:
    random = np.random.default_rng(3)
    weight, row, other = (random.standard_normal(size, dtype=np.float32) for size in ((4, 4), (1, 4), (4, 4)))
    model = graph(
        """
linear (float[batch, 4] x) => (float[batch, 4] y) {
  turned = Transpose<perm = [1, 0]>(weight)
  product = MatMul(x, turned)
  behind = MatMul(row, other)
  y = Add(product, behind)
}
""",
        weight=weight,
        row=row,
        other=other,
    )
    formed = run_passes(model, [Clean(), FoldConstants()])
    assert operators(formed) == {"Transpose": 1, "MatMul": 1, "Add": 1}
    assert [layer.weight for layer in weighted_layers(formed)] == ["weight"]
    x = random.standard_normal((3, 4), dtype=np.float32)
    np.testing.assert_allclose(run_model(formed, {"x": x})["y"], x @ weight.T + row @ other, rtol=1e-5)


@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_network_over_constants_is_folded(turned: tuple[int, int], scales: tuple[float, float], biased: bool) -> None:
    """As Swin V2 has one over the coordinates of a window, whose answer is the attention's bias."""
    random = torch.Generator().manual_seed(4)
    a, b, c = (torch.randn(shape, generator=random) for shape in ((5, 2), (2, 8), (8,)))
    held = {"coordinates": a.t() if turned[0] else a, "weight": b.t() if turned[1] else b, "bias": c}
    held = held if biased else {name: held[name] for name in ("coordinates", "weight")}
    text = f"""
net (float[batch, 5, 8] x) => (float[batch, 5, 8] y) {{
  hidden = Gemm<transA = {turned[0]}, transB = {turned[1]}, alpha = {scales[0]}, beta = {scales[1]}>({", ".join(held)})
  active = Gelu(hidden)
  y = Add(x, active)
}}"""
    constants = {name: array_from_tensor(tensor.contiguous()) for name, tensor in held.items()}
    formed = run_passes(graph(text, **constants), [FoldConstants()])
    assert operators(formed) == {"Add": 1}
    assert weighted_layers(formed) == ()
    hidden = scales[0] * (a @ b) + (scales[1] * c if biased else 0)
    x = torch.randn((3, 5, 8), generator=random)
    expected = array_from_tensor(x + torch.nn.functional.gelu(hidden))
    got = run_model(formed, {"x": array_from_tensor(x)})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_large_results_quantised_weights_and_answers_are_left_alone() -> None:
    large = graph(
        """
grow (float[1] x) => (float[3000, 2000] y) {
  grown = Expand(one, shape)
  y = Add(x, grown)
}
""",
        one=np.ones(1, np.float32),
        shape=np.array([3000, 2000]),
    )
    quantised = graph(
        """
linear (float[batch, 2] x) => (float[batch, 2] y) {
  weight = DequantizeLinear(codes, scale)
  turned = Transpose<perm = [1, 0]>(weight)
  y = MatMul(x, turned)
}
""",
        codes=np.ones((2, 2), np.int8),
        scale=np.array(0.5, np.float32),
    )
    answer = graph("constant (float[1] x) => (float[2] y) { y = Neg(two) }", two=np.ones(2, np.float32))
    assert [FoldConstants().run(model) for model in (large, quantised, answer)] == [0, 0, 0]


PADDED = """
pad (float[batch, 4] x) => (float[batch, n] y) {
  wide = Pad(x, pads)
  same = Transpose<perm = [0, 1]>(wide)
  again = Reshape(same, shape)
  y = Relu(again)
}
"""


@pytest.mark.parametrize(("pads", "dropped"), [([0, 0, 0, 0], 3), ([0, 0, 0, 1], 2)])
def test_nodes_that_do_nothing_are_dropped(pads: list[int], dropped: int) -> None:
    width = 4 + pads[3]
    model = graph(PADDED, pads=np.array(pads), shape=np.array([-1, width]))
    formed = run_passes(model, [Clean(), DropNoOps()])
    assert len(model.graph) - len(formed.graph) == dropped
    x = {"x": np.random.default_rng(4).standard_normal((3, 4), dtype=np.float32)}
    # Nothing is computed but a maximum with zero.
    assert np.array_equal(run_model(formed, x)["y"], run_model(model, x)["y"])


def test_an_answer_keeps_its_node() -> None:
    model = graph("same (float[2, 3] x) => (float[2, 3] y) { y = Reshape(x, shape) }", shape=np.array([2, 3]))
    assert DropNoOps().run(model) == 0


# Of sums of six float32 numbers below 8: a token's sums may depend on where in memory it stands.
ROUNDING = 6 * 8 * float(np.finfo(np.float32).eps)
WINDOWS = """
windows (float[batch, 4, 6] x) => (float[groups, 2, 5] y) {
  normal = LayerNormalization<axis = -1>(x, gain, offset)
  first = Slice(normal, zero, one, axes)
  rest = Slice(normal, one, end, axes)
  rolled = Concat<axis = 1>(rest, first)
  split = Reshape(rolled, parts)
  turned = Transpose<perm = [0, 2, 1, 3]>(split)
  window = Reshape(turned, flat)
  y = MatMul(window, weight)
}
"""


def windows(text: str = WINDOWS, **changes: npt.NDArray[Any]) -> ir.Model:
    random = np.random.default_rng(5)
    constants: dict[str, npt.NDArray[Any]] = {
        "gain": random.standard_normal(6, dtype=np.float32),
        "offset": random.standard_normal(6, dtype=np.float32),
        "zero": np.array([0]),
        "one": np.array([1]),
        "end": np.array([4]),
        "axes": np.array([1]),
        "parts": np.array([-1, 2, 2, 6]),
        "flat": np.array([-1, 2, 6]),
        "weight": random.standard_normal((6, 5), dtype=np.float32),
    }
    # onnx infers no shape for a Reshape to -1; FoldShapes fills it in.
    return run_passes(graph(text, **{**constants, **changes}), [Clean(), FoldShapes()])


def test_a_norm_moves_behind_a_shift_and_a_partition() -> None:
    model = windows()
    formed = run_passes(model, [WindowNorm()])
    assert [node.op_type for node in formed.graph][-2:] == ["LayerNormalization", "MatMul"]
    x = {"x": np.random.default_rng(6).standard_normal((3, 4, 6), dtype=np.float32)}
    np.testing.assert_allclose(run_model(formed, x)["y"], run_model(model, x)["y"], rtol=0, atol=ROUNDING)
    assert WindowNorm().run(formed) == 0


FOUR_AXES = """
windows (float[batch, 2, 2, 6] x) => (float[groups, 2, 5] y) {
  normal = LayerNormalization<axis = 3>(x, gain, offset)
  turned = Transpose<perm = [0, 2, 1, 3]>(normal)
  window = Reshape(turned, flat)
  y = MatMul(window, weight)
}
"""


def test_a_norm_whose_axis_is_counted_from_the_front_moves_to_fewer_axes() -> None:
    model = windows(FOUR_AXES)
    formed = run_passes(model, [WindowNorm()])
    assert [node.op_type for node in formed.graph][-2:] == ["LayerNormalization", "MatMul"]
    x = {"x": np.random.default_rng(6).standard_normal((3, 2, 2, 6), dtype=np.float32)}
    np.testing.assert_allclose(run_model(formed, x)["y"], run_model(model, x)["y"], rtol=0, atol=ROUNDING)


TWICE = WINDOWS.replace("5] y)", "5] y, float[a, b, 6] other)")
DECLINED: dict[str, tuple[str, dict[str, npt.NDArray[Any]]]] = {
    "a channel axis that moves": (WINDOWS.replace("[0, 2, 1, 3]", "[0, 2, 3, 1]"), {}),
    "tokens that are cut": (WINDOWS, {"parts": np.array([-1, 4, 2, 3])}),
    "channels that are rolled": (
        WINDOWS.replace("Concat<axis = 1>", "Concat<axis = 2>"),
        {"axes": np.array([2]), "end": np.array([6])},
    ),
    "a norm over two axes": (
        WINDOWS.replace("LayerNormalization<axis = -1>", "LayerNormalization<axis = 1>"),
        {"gain": np.ones((4, 6), np.float32), "offset": np.ones((4, 6), np.float32)},
    ),
    "a norm that is read twice": (TWICE.replace("  first =", "  other = Relu(normal)\n  first ="), {}),
    "windows that are read twice": (TWICE.replace("  y =", "  other = Relu(window)\n  y ="), {}),
    "something between": (WINDOWS.replace("Transpose<perm = [0, 2, 1, 3]>", "Relu"), {}),
    "two sources": (WINDOWS.replace("Concat<axis = 1>(rest, first)", "Concat<axis = 1>(rest, first, x)"), {}),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_does_not_keep_tokens_whole_is_left_alone(name: str) -> None:
    text, changes = DECLINED[name]
    assert WindowNorm().run(windows(text, **changes)) == 0
