"""Weighted layers of graphs against torch's own count, and of small graphs against what is written in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import GraphLayer, weight_rows, weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.sparsity.graph_check import graph_weights

W = np.arange(32, dtype=np.float32).reshape(8, 4)


def only(text: str, **constants: Any) -> tuple[Any, GraphLayer]:
    model = tiny_models.graph(text, **constants)
    (layer,) = weighted_layers(model)
    return model, layer


def counted_by_torch(module: torch.nn.Module, sample: torch.Tensor) -> dict[str, tuple[int, int, int]]:
    """N, K and multiply-accumulates of one sample, by the outputs that the layers really give."""
    counted: dict[str, tuple[int, int, int]] = {}

    def hook(name: str) -> Any:
        def see(child: Any, _: object, output: torch.Tensor) -> None:
            weight: torch.Tensor = child.weight
            k = weight.numel() // weight.shape[0]
            counted[name] = (weight.shape[0], k, output.numel() * k)

        return see

    untyped: Any = module
    handles = [
        child.register_forward_hook(hook(name))
        for name, child in untyped.named_modules()
        if isinstance(child, (torch.nn.Linear, torch.nn.Conv2d))
    ]
    with torch.no_grad():
        module(sample)
    for handle in handles:
        handle.remove()
    return counted


@pytest.mark.slow
@pytest.mark.parametrize(("static", "biases"), [(False, True), (True, True), (False, False)])
def test_names_sizes_and_macs_are_those_of_torch(static: bool, biases: bool) -> None:
    exported = tiny_models.exported_vit(static=static, biases=biases)
    expected = counted_by_torch(exported.checkpoint.module, torch.from_numpy(tiny_models.images(1)))
    found = weighted_layers(exported.model)
    assert {layer.layer: (layer.n, layer.k, layer.macs) for layer in found} == expected
    assert [layer.layer for layer in found] == list(expected)
    assert [layer.kind for layer in found] == ["patch_embed"] + ["linear"] * 5


@pytest.mark.slow
def test_rows_are_the_weights_of_the_module() -> None:
    exported = tiny_models.exported_vit()
    weights = exported.checkpoint.module.state_dict()
    for seen in graph_weights(exported.model, weighted_layers(exported.model)):
        rows = weights[f"{seen.layer}.weight"].numpy()
        if rows.ndim == 4:
            rows = np.stack([rows[n, :, y, x] for n in range(64) for y in range(8) for x in range(8)])
        np.testing.assert_array_equal(seen.rows, rows)


@pytest.mark.slow
def test_layers_are_found_through_their_q_and_dq(quantized: Any) -> None:
    before, after = weighted_layers(quantized.before), weighted_layers(quantized.after)
    assert [(layer.layer, layer.n, layer.k, layer.macs, layer.kind) for layer in after] == [
        (layer.layer, layer.n, layer.k, layer.macs, layer.kind) for layer in before
    ]
    for one, other in zip(before, after, strict=True):
        rows, codes = weight_rows(quantized.before, one), weight_rows(quantized.after, other)
        assert codes.dtype == np.int8
        assert codes.shape == rows.shape
        assert (np.sign(codes) * np.sign(rows) >= 0).all()


def test_a_matmul_has_its_channels_in_the_columns() -> None:
    model, layer = only("g (float[B,8] x) => (float[B,4] y) { [fc] y = MatMul(x, w) }", w=W)
    assert (layer.n, layer.k, layer.channel_axis, layer.macs) == (4, 8, 1, 32)
    np.testing.assert_array_equal(weight_rows(model, layer), W.T)
    assert (layer.layer, layer.node, layer.input, layer.weight) == ("fc", "fc", "x", "w")


@pytest.mark.parametrize(("flag", "rows"), [(0, W.T), (1, W)])
def test_a_gemm_has_them_where_its_flag_says(flag: int, rows: Any) -> None:
    text = f"g (float[B,{rows.shape[1]}] x) => (float[B,{rows.shape[0]}] y) {{ [fc] y = Gemm<transB = {flag}>(x, w) }}"
    model, layer = only(text, w=W)
    assert (layer.n, layer.k, layer.channel_axis) == (*rows.shape, 1 - flag)
    np.testing.assert_array_equal(weight_rows(model, layer), rows)


@pytest.mark.parametrize("transposes", [1, 2, 3])
def test_transposes_in_front_of_a_weight_turn_it(transposes: int) -> None:
    steps = [f"[t{i}] w{i + 1} = Transpose<perm = [1, 0]>(w{i})" for i in range(transposes)]
    rows = W if transposes % 2 else W.T
    steps.append(f"[fc] y = MatMul(x, w{transposes})")
    text = f"g (float[B,{rows.shape[1]}] x) => (float[B,{rows.shape[0]}] y) {{ {' '.join(steps)} }}"
    model, layer = only(text, w0=W)
    assert (layer.n, layer.k, layer.weight) == (*rows.shape, "w0")
    np.testing.assert_array_equal(weight_rows(model, layer), rows)


def test_a_transpose_that_changes_nothing_turns_nothing() -> None:
    text = "g (float[B,8] x) => (float[B,4] y) { [t] v = Transpose<perm = [0, 1]>(w) [fc] y = MatMul(x, v) }"
    model, layer = only(text, w=W)
    np.testing.assert_array_equal(weight_rows(model, layer), W.T)


def test_a_transpose_without_a_permutation_turns() -> None:
    text = "g (float[B,4] x) => (float[B,8] y) { [t] v = Transpose(w) [fc] y = MatMul(x, v) }"
    model, layer = only(text, w=W)
    np.testing.assert_array_equal(weight_rows(model, layer), W)


@pytest.mark.parametrize(
    ("attributes", "shape", "kind", "macs"),
    [
        ("strides = [2, 2]", (6, 3, 2, 2), "patch_embed", 4 * 4 * 6 * 12),
        ("strides = [2, 2], group = 3", (6, 1, 2, 2), "conv", 4 * 4 * 6 * 4),
        ("strides = [1, 1]", (6, 3, 1, 1), "conv", 8 * 8 * 6 * 3),
        ("strides = [1, 1], pads = [1, 1, 1, 1]", (6, 3, 3, 3), "conv", 8 * 8 * 6 * 27),
        ("dilations = [1, 1]", (6, 3, 8, 8), "conv", 6 * 192),
    ],
)
def test_convs_are_counted_and_told_apart(attributes: str, shape: tuple[int, ...], kind: str, macs: int) -> None:
    side = {"2": 4, "1": 8, "3": 8, "8": 1}[str(shape[-1])]
    text = f"g (float[B,3,8,8] x) => (float[B,6,{side},{side}] y) {{ [c] y = Conv<{attributes}>(x, w) }}"
    _, layer = only(text, w=np.ones(shape, np.float32))
    assert (layer.kind, layer.n, layer.k, layer.macs) == (kind, 6, int(np.prod(shape[1:])), macs)


def test_a_fixed_batch_is_not_counted() -> None:
    _, dynamic = only("g (float[B,5,8] x) => (float[B,5,4] y) { [fc] y = MatMul(x, w) }", w=W)
    _, fixed = only("g (float[7,5,8] x) => (float[7,5,4] y) { [fc] y = MatMul(x, w) }", w=W)
    assert dynamic.macs == fixed.macs == 5 * 32


def test_an_unknown_shape_counts_nothing() -> None:
    _, layer = only("g (float[B,N,8] x) => (float[B,?,4] y) { [fc] y = MatMul(x, w) }", w=W)
    assert layer.macs == 0


@pytest.mark.parametrize(
    "text",
    [
        "g (float[B,8] x, float[8,4] w) => (float[B,4] y) { [fc] y = MatMul(x, w) }",
        "g (float[B,8] x) => (float[8,B] y) { [t] u = Transpose(x) [fc] y = MatMul(v, u) }",
        "g (float[B,3,8] x) => (float[B,3,4] y) { [fc] y = MatMul(x, batched) }",
        "g (float[B,8] x) => (float[B,8] y) { [a] y = Add(x, bias) }",
    ],
)
def test_products_without_a_constant_matrix_are_no_layers(text: str) -> None:
    constants = {"v": np.ones((8, 8)), "batched": np.ones((1, 8, 4)), "bias": np.ones(8)}
    used = {name: value.astype(np.float32) for name, value in constants.items() if name in text.split("{")[1]}
    assert weighted_layers(tiny_models.graph(text, **used)) == ()


def test_two_uses_of_one_module_get_names_of_their_own() -> None:
    text = """g (float[B,8] x) => (float[B,4] y, float[B,4] z) {
      [one] y = MatMul(x, w)
      [r] h = Relu(x)
      [two] z = MatMul(h, w)
    }"""
    model = tiny_models.graph(text, w=W)
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'shared', 'linear']"
    assert [layer.layer for layer in weighted_layers(model)] == ["shared/one", "shared/two"]


@pytest.mark.parametrize("scopes", ["", "not python", "7", "[]", "['', 'linear']"[:-1], "None", "['linear']"])
def test_a_node_without_a_module_is_called_by_its_own_name(scopes: str) -> None:
    model = tiny_models.graph("g (float[B,8] x) => (float[B,4] y) { [fc] y = MatMul(x, w) }", w=W)
    model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    assert [layer.layer for layer in weighted_layers(model)] == ["fc"]


def test_a_graph_without_weights_has_no_layers() -> None:
    model = tiny_models.graph("g (float[B,8] x) => (float[B,8] y) { [r] y = Relu(x) }")
    assert weighted_layers(run_passes(model, [Clean()])) == ()


def test_a_conv_whose_weight_has_no_kernel_is_named() -> None:
    model = tiny_models.graph(
        "g (float[B,3,8,8] x) => (float[B,6,8,8] y) { [c] y = Conv(x, w) }", w=np.ones(6, np.float32)
    )
    with pytest.raises(GpusqError, match="at least 3 axes, w has 1") as caught:
        weighted_layers(model)
    assert caught.value.place == "node c"
