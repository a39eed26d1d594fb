"""Smoothing leaves the function as it is: both graphs in ONNX Runtime, one of each way to hold a weight and a bias."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import planning
import pytest
import tiny_models

from gpusq_deploy.artifacts.calibration import Calibrator
from gpusq_deploy.artifacts.recipe import Recipe, Rule
from gpusq_deploy.calibration.instrument import VALUES_SUFFIX, instrumented
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.blocks import block_sites, layer_sites
from gpusq_deploy.graph.layers import weight_rows, weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.smooth import Smooth, SmoothedTensor, moved_tensors
from gpusq_deploy.graph.smoothable import Smoothable, find_smoothable
from gpusq_deploy.graph.values import array_of, value_name
from gpusq_deploy.numerics.error import sqnr_db
from gpusq_deploy.numerics.smoothing import Smoothing
from gpusq_deploy.numerics.two_four import magnitude_mask, violating_groups
from gpusq_deploy.quantize.smoothing import places_to_smooth

Array = npt.NDArray[Any]
K = 8
SMOOTHED = Recipe(
    schema="gpusq.recipe/1", name="smoothed", description="a test", rules=(Rule(smooth=True, reason="all of them"),)
)

# The activation `a` [B, 8] comes from NORM or GELU; the layers that read it are below.
NORM = "[norm] a = LayerNormalization<axis = -1>(x, gain, shift)"
BARE_NORM = "[norm] a = LayerNormalization<axis = -1>(x, gain)"
GELU = "[act] a = Gelu(x)"
QUICK_GELU = "[scale] s = Mul(x, alpha) [gate] g = Sigmoid(s) [act] a = Mul(x, g)"  # CLIP's
SILU = "[gate] g = Sigmoid(x) [act] a = Mul(g, x)"
READERS = {
    "matmul": "[fc] p = MatMul(a, columns) [add] y = Add(p, bias)",
    "matmul, bias first": "[fc] p = MatMul(a, columns) [add] y = Add(bias, p)",
    "turned": "[t] w = Transpose<perm = [1, 0]>(rows) [fc] p = MatMul(a, w) [add] y = Add(p, bias)",
    "gemm": "[fc] y = Gemm(a, columns, bias)",
    "gemm, rows": "[fc] y = Gemm<transB = 1>(a, rows, bias)",
    "gemm, rows, turned": "[t] w = Transpose<perm = [1, 0]>(columns) [fc] y = Gemm<transB = 1>(a, w, bias)",
    "matmul without bias": "[fc] y = MatMul(a, columns)",
    "gemm without bias": "[fc] y = Gemm<transB = 1>(a, rows)",
    "gemm with alpha": "[fc] y = Gemm<alpha = 0.5, beta = 2.0>(a, columns, bias)",
}


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small(body: str, *, outputs: str = "float[B,5] y") -> ir.Model:
    """A graph of `body` with only those constants that it reads."""
    constants = {
        "gain": numbers(K, seed=1) + 2,
        "shift": numbers(K, seed=2),
        "columns": numbers(K, 5, seed=3),
        "rows": numbers(5, K, seed=4),
        "bias": numbers(5, seed=5),
        "alpha": np.array(1.702, np.float32),
    }
    used = {name: value for name, value in constants.items() if f"{name})" in body or f"{name}," in body}
    return tiny_models.graph(f"g (float[B,8] x) => ({outputs}) {{ {body} }}", **used)


def found(model: ir.Model) -> tuple[tuple[Smoothable, ...], tuple[tuple[str, str], ...]]:
    return find_smoothable(model, weighted_layers(model))


def decision(place: Smoothable, *, seed: int = 0) -> SmoothedTensor:
    """Factors from 1/4 to 4, and offsets where they are possible: nothing that a range would ask for."""
    width = place.readers[0].k
    random = np.random.default_rng(seed)
    factor = np.exp2(random.uniform(-2, 2, width)).astype(np.float32)
    offset = random.standard_normal(width).astype(np.float32) if place.shiftable else np.zeros(width, np.float32)
    return SmoothedTensor(place=place, smoothing=Smoothing(factor, offset, None))


def smoothed(model: ir.Model) -> tuple[Smooth, ir.Model]:
    places, _ = found(model)
    step = Smooth(tuple(decision(place, seed=index) for index, place in enumerate(places)))
    return step, run_passes(model, [step])


def require_same(model: ir.Model, other: ir.Model, feeds: dict[str, Array]) -> None:
    before, after = tiny_models.run_model(model, feeds), tiny_models.run_model(other, feeds)
    assert set(before) == set(after)
    for name, values in before.items():
        assert np.abs(after[name] - values).max() <= 1e-5 * np.abs(values).max(), name


def bytes_of(model: ir.Model) -> bytes:
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("producer", [NORM, BARE_NORM, GELU, QUICK_GELU, SILU])
def test_every_form_computes_the_same(producer: str, reader: str) -> None:
    model = small(f"{producer} {READERS[reader]}")
    ((place,), declined) = found(model)
    assert declined == ()
    assert place.producer == ("layer-norm" if producer in {NORM, BARE_NORM} else "gelu")
    assert place.shiftable == (not reader.endswith(("without bias", "with alpha")))
    step, after = smoothed(model)
    assert step.tensors[0].smoothing.offset.any() == place.shiftable
    require_same(model, after, {"x": numbers(7, K, seed=9)})


@pytest.mark.parametrize(
    "gated",
    [
        "[other] o = Neg(x) [gate] g = Sigmoid(o) [act] a = Mul(x, g)",  # as in a SwiGLU
        "[scale] s = Mul(x, x) [gate] g = Sigmoid(s) [act] a = Mul(x, g)",
        "[gate] g = Sigmoid(x) [act] a = Mul(g, g)",
        "[gate] g = Tanh(x) [act] a = Mul(x, g)",
    ],
)
def test_what_another_tensor_gates_is_declined(gated: str) -> None:
    places, declined = found(small(f"{gated} {READERS['matmul']}"))
    assert places == ()
    assert [layer for layer, reason in declined if "comes from a Mul" in reason] == ["fc"]


@pytest.mark.parametrize("producer", [NORM, GELU, QUICK_GELU])
def test_the_activation_becomes_what_the_equation_says(producer: str) -> None:
    model = small(f"{producer} {READERS['matmul']}", outputs="float[B,5] y, float[B,8] a")
    model.graph.outputs.pop()
    before = small(f"{producer} {READERS['matmul']}", outputs="float[B,5] y, float[B,8] a")
    step, after = smoothed(model)
    node = next(node for node in after.graph if node.name == "fc")
    assert node.inputs[0] is not None
    after.graph.outputs.append(node.inputs[0])
    feeds = {"x": numbers(7, K, seed=9)}
    factor, offset, _ = step.tensors[0].smoothing
    expected = (tiny_models.run_model(before, feeds)["a"] - offset) / factor
    got = list(tiny_models.run_model(after, feeds).values())[1]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    weight = weight_rows(after, weighted_layers(after)[0])
    np.testing.assert_array_equal(weight, array_of(model.graph.initializers["columns"]).T * factor)


def test_what_stands_behind_a_gelu_is_no_more_than_it_has_to_be() -> None:
    for reader, added in (("matmul", ["Mul", "Sub"]), ("matmul without bias", ["Mul"])):
        _, after = smoothed(small(f"{GELU} {READERS[reader]}"))
        assert [node.op_type for node in after.graph][1 : 1 + len(added)] == added
        assert sum(node.op_type in {"Mul", "Sub"} for node in after.graph) == len(added)
    _, after = smoothed(small(f"{NORM} {READERS['matmul']}"))
    assert [node.op_type for node in after.graph] == ["LayerNormalization", "MatMul", "Add"]


TWO = "[q] p = MatMul(a, columns) [add] y = Add(p, bias) [k] z = Gemm<transB = 1>(a, rows, bias)"


@pytest.mark.parametrize("producer", [NORM, GELU])
def test_layers_that_read_one_activation_share_one_smoothing(producer: str) -> None:
    """They share a bias too: each gets its own."""
    model = small(f"{producer} {TWO}", outputs="float[B,5] y, float[B,5] z")
    ((place,), _) = found(model)
    assert [reader.node for reader in place.readers] == ["q", "k"]
    assert place.shiftable
    _, after = smoothed(model)
    assert sum(node.op_type in {"Mul", "Sub"} for node in after.graph) == (2 if producer == GELU else 0)
    require_same(model, after, {"x": numbers(7, K, seed=9)})


def test_one_reader_without_a_bias_takes_the_offset_from_all() -> None:
    model = small(f"{NORM} {TWO.replace('(a, rows, bias)', '(a, rows)')}", outputs="float[B,5] y, float[B,5] z")
    ((place,), _) = found(model)
    assert not place.shiftable


def test_constants_that_others_read_are_left_alone() -> None:
    """The exporter shares equal constants: here two norms share a gain, and two layers a weight and a bias."""
    body = (
        f"{NORM} {READERS['matmul']} [n] b = LayerNormalization<axis = -1>(x, gain, shift) [o] q = MatMul(b, columns)"
    )
    model = small(
        f"{body} [oadd] z = Add(q, bias) [keep] r = Identity(b)", outputs="float[B,5] y, float[B,5] z, float[B,8] r"
    )
    before = {name: array_of(value).copy() for name, value in model.graph.initializers.items()}
    places, declined = found(model)
    assert [place.tensor for place in places] == ["a"]
    assert declined == (("o", "something else reads tensor b too"),)
    _, after = smoothed(model)
    for name, values in before.items():
        np.testing.assert_array_equal(array_of(after.graph.initializers[name]), values)
    require_same(model, after, {"x": numbers(7, K, seed=9)})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "[s] g = Sigmoid(x) [o] o = Neg(x) [m] a = Mul(g, o) [fc] y = MatMul(a, columns)",
            "its input comes from a Mul",
        ),
        (f"{NORM} [r] r = Relu(a) [fc] p = MatMul(a, columns) [m] y = Add(p, bias)", "something else reads tensor a"),
        (f"{GELU} [t] s = Softmax(a) [fc] y = MatMul(a, columns)", "something else reads tensor a too"),
        ("[fc] y = MatMul(x, columns)", "it reads the graph's input"),
        ("[norm] a = LayerNormalization<axis = 0>(x, x) [fc] y = MatMul(a, columns)", "isn't over the last axis"),
        ("[norm] a = LayerNormalization<axis = -1>(x, x) [fc] y = MatMul(a, columns)", "isn't constant"),
    ],
)
def test_what_cannot_be_smoothed_is_declined_with_its_reason(body: str, reason: str) -> None:
    places, declined = found(small(body))
    assert places == ()
    ((layer, why),) = declined
    assert layer == "fc"
    assert reason in why


def test_an_activation_that_is_an_output_is_declined() -> None:
    places, declined = found(small(f"{GELU} {READERS['matmul']}", outputs="float[B,5] y, float[B,8] a"))
    assert (places, declined) == ((), (("fc", "something else reads tensor a too"),))


def test_a_product_that_is_an_output_itself_takes_no_offset() -> None:
    """What is added behind it doesn't reach that output."""
    model = small(f"{NORM} {READERS['matmul']}", outputs="float[B,5] y, float[B,5] p")
    ((place,), _) = found(model)
    assert not place.shiftable
    _, after = smoothed(model)
    require_same(model, after, {"x": numbers(7, K, seed=9)})


def test_a_bias_that_is_no_constant_takes_no_offset() -> None:
    model = small(f"{NORM} [s] m = ReduceMean<keepdims = 0>(x) [fc] p = MatMul(a, columns) [add] y = Add(p, m)")
    ((place,), _) = found(model)
    assert not place.shiftable


def test_a_gemm_that_transposes_its_input_is_declined() -> None:
    text = "g (float[8,8] x) => (float[8,5] y) { [act] a = Gelu(x) [fc] y = Gemm<transA = 1>(a, columns) }"
    places, declined = found(tiny_models.graph(text, columns=numbers(K, 5)))
    assert (places, declined) == ((), (("fc", "its Gemm transposes the input"),))


def test_a_layer_that_is_not_to_be_smoothed_keeps_its_neighbours_from_it() -> None:
    model = small(f"{NORM} {TWO}", outputs="float[B,5] y, float[B,5] z")
    one, _ = weighted_layers(model)
    assert find_smoothable(model, [one]) == ((), (("q", "something else reads tensor a too"),))


def test_a_calibrator_of_its_own_is_declined() -> None:
    model = small(f"{NORM} {READERS['matmul']}")
    layers = weighted_layers(model)
    places, declined = places_to_smooth(model, layers, SMOOTHED, {"a": Calibrator(name="mse")})
    assert (places, declined) == ((), (("fc", "its calibrator isn't amax"),))
    places, declined = places_to_smooth(model, layers, SMOOTHED, {"a": Calibrator(name="amax")})
    assert [place.tensor for place in places] == ["a"]
    assert declined == ()


def test_what_the_recipe_does_not_want_smoothed_is_neither_smoothed_nor_declined() -> None:
    model = small(f"{NORM} {READERS['matmul']}")
    assert places_to_smooth(model, weighted_layers(model), planning.EVERYTHING, {}) == ((), ())


@pytest.mark.parametrize("producer", [NORM, GELU])
def test_a_second_run_changes_nothing(producer: str) -> None:
    step, after = smoothed(small(f"{producer} {READERS['matmul']}"))
    again = after.clone()
    before = bytes_of(again)
    assert step.run(again) == 0
    assert bytes_of(again) == before


def test_the_number_of_changes_is_that_of_activations() -> None:
    model = small(f"{NORM} {TWO}", outputs="float[B,5] y, float[B,5] z")
    step, _ = smoothed(model)
    assert step.run(model.clone()) == 1
    assert Smooth(()).run(model.clone()) == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"node": "gone"}, "a node that the graph doesn't have"),
        ({"input": "x"}, "another input than the graph has"),
        ({"weight": "rows"}, "another weight than the graph has"),
    ],
)
def test_a_decision_about_another_graph_is_refused(change: dict[str, str], what: str) -> None:
    model = small(f"{NORM} {READERS['matmul']}")
    ((place,), _) = found(model)
    layer = dataclasses.replace(place.readers[0], **change)  # type: ignore[arg-type]  # mypy sees only dict[str, str]
    wrong = decision(dataclasses.replace(place, readers=(layer,)))
    with pytest.raises(GpusqError, match=what) as caught:
        Smooth((wrong,)).run(model.clone())
    assert caught.value.place == layer.node


def test_an_offset_without_a_bias_is_refused() -> None:
    model = small(f"{NORM} {READERS['matmul without bias']}")
    ((place,), _) = found(model)
    wrong = decision(dataclasses.replace(place, shiftable=True))
    with pytest.raises(GpusqError, match="no bias") as caught:
        Smooth((wrong,)).run(model.clone())
    assert caught.value.place == "fc"


def test_a_sparse_weight_stays_sparse() -> None:
    model = small(f"{GELU} {READERS['matmul']}")
    columns = model.graph.initializers["columns"]
    values = array_of(columns).T
    sparse = np.where(magnitude_mask(values), values, np.float32(0))
    columns.const_value = tiny_models.tensor(np.ascontiguousarray(sparse.T), "columns")
    _, after = smoothed(model)
    rows = weight_rows(after, weighted_layers(after)[0])
    assert len(violating_groups(rows)) == 0
    np.testing.assert_array_equal(rows == 0, sparse == 0)


@pytest.mark.slow
@pytest.mark.parametrize("biases", [True, False])
def test_an_exported_transformer_computes_the_same(biases: bool) -> None:
    """Without biases the exporter shares one tensor of zeros between norms and layers."""
    model = run_passes(tiny_models.exported_vit(biases=biases).model, CANONICAL)
    places, declined = found(model)
    smoothable = {reader.layer: (place.producer, place.shiftable) for place in places for reader in place.readers}
    assert smoothable == {
        "blocks.0.attn.qkv": ("layer-norm", True),
        "blocks.0.attn.proj": ("attention", True),
        "blocks.0.mlp.fc1": ("layer-norm", True),
        "blocks.0.mlp.fc2": ("gelu", True),
    }
    assert {layer for layer, _ in declined} == {"patch_embed.proj", "head"}
    step, after = smoothed(model)
    assert step.run(model.clone()) == 4
    assert step.run(after.clone()) == 0
    require_same(model, after, {"input": tiny_models.images(3, seed=7)})


@pytest.mark.slow
def test_an_exported_swin_computes_the_same() -> None:
    """The values of its attentions lie in windows, and the window partition stands in front of their layer."""
    model = run_passes(tiny_models.exported_swin(), CANONICAL)
    places, _ = found(model)
    assert [place.producer for place in places].count("attention") == 3
    step, after = smoothed(model)
    assert step.run(after.clone()) == 0
    require_same(model, after, {"input": tiny_models.images(3, seed=7)})


ATTENTION = """
[values] p = {layer} [add] v = Add(p, bias)
[turn] vt = Transpose<perm = [1, 0]>(x) [scores] s = MatMul(x, vt) [soft] w = Softmax<axis = -1>(s)
[context] a = MatMul(w, v) [fc] q = MatMul(a, out) [end] y = Add(q, shift)
"""


@pytest.mark.parametrize("layer", ["MatMul(x, columns)", "Gemm(x, columns)", "Gemm<transB = 1>(x, rows)"])
def test_values_of_an_attention_take_factors_up_however_they_are_written(layer: str) -> None:
    """A Gemm without a bias input keeps its bias in no place that takes an offset."""
    constants = {
        "columns": numbers(K, K, seed=3),
        "rows": numbers(K, K, seed=4),
        "bias": numbers(K, seed=5),
        "shift": numbers(5, seed=6),
        "out": numbers(K, 5, seed=7),
    }
    body = ATTENTION.format(layer=layer)
    used = {name: value for name, value in constants.items() if f"{name})" in body}
    model = tiny_models.graph(f"g (float[6,8] x) => (float[6,5] y) {{ {body} }}", **used)
    places = [place for place in found(model)[0] if place.producer == "attention"]
    if layer.startswith("Gemm"):
        assert places == []
        return
    (place,) = places
    assert place.shiftable
    assert place.values is not None
    assert (place.values.writer, place.values.channels) == ("values", tuple(range(K)))
    step, after = smoothed(model)
    assert step.run(model.clone()) == 1
    require_same(model, after, {"x": numbers(6, K, seed=9)})


def floats_of(model: ir.Model) -> set[str]:
    return {value_name(value) for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT}


def apart(model: ir.Model, step: Smooth, after: ir.Model, feeds: dict[str, Array]) -> dict[str, float]:
    """SQNR of every tensor that both graphs have, with what smoothing did to it undone."""
    moved = moved_tensors(model, step.tensors)
    names = sorted(floats_of(model) & floats_of(after) - {name for name, how in moved.items() if how is None})
    before, behind = (tiny_models.run_model(instrumented(each, names, whole=names), feeds) for each in (model, after))
    figures: dict[str, float] = {}
    for name in names:
        got, how = behind[f"{name}{VALUES_SUFFIX}"], moved.get(name)
        figures[name] = sqnr_db(before[f"{name}{VALUES_SUFFIX}"], got if how is None else how.undone(got))
    return figures


@pytest.mark.parametrize("producer", [NORM, GELU])
def test_what_smoothing_did_to_an_activation_can_be_undone(producer: str) -> None:
    model = small(f"{producer} {READERS['matmul']}")
    step, after = smoothed(model)
    figures = apart(model, step, after, {"x": numbers(7, K, seed=9)})
    assert set(figures) == {"a", "y"}
    assert min(figures.values()) > 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "vit without biases", "swin"])
def test_every_tensor_of_a_smoothed_transformer_means_what_it_did(kind: str) -> None:
    """Nothing is quantised: what a drift map shows here is an error of its own."""
    exported = tiny_models.exported_swin() if kind == "swin" else tiny_models.exported_vit(biases=kind == "vit").model
    model = run_passes(exported, CANONICAL)
    step, after = smoothed(model)
    figures = apart(model, step, after, {"input": tiny_models.images(3, seed=7)})
    sites = {site.tensor for site in (*block_sites(model), *layer_sites(model, ["blocks", "layers"]))}
    assert len(sites) >= 5
    assert sites <= set(figures)
    assert {name: figure for name, figure in figures.items() if figure <= 100} == {}
