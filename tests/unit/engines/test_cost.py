"""Bytes and FLOPs of built kernels, against counts made by hand from the tiny models' own shapes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from gpusq_deploy.artifacts.receipt import EngineLayer, EngineTensor
from gpusq_deploy.engines.cost import graph_cost, layers_at
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.errors import GpusqError

ModelMaker = Callable[..., Path]
A100 = find_target("a100")

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)


def tensor(dtype: str, *shape: int) -> EngineTensor:
    return EngineTensor(name="t", shape=shape, dtype=dtype)


def layer(
    kind: str,
    inputs: list[EngineTensor],
    outputs: list[EngineTensor],
    constants: list[EngineTensor] | None = None,
    name: str = "x",
) -> EngineLayer:
    return EngineLayer(
        name=name,
        kind=kind,
        inputs=tuple(inputs),
        constants=tuple(constants or ()),
        outputs=tuple(outputs),
        tactic="",
        onnx_nodes=(),
    )


@needs_rtx
def test_an_fp16_product_of_64_by_128(make_model: ModelMaker) -> None:
    cost = graph_cost(layers_at(make_model("fp16"), A100, 8), batch=8)
    # x [8, 64], w [64, 128], bias [128], y [8, 128], all halves; one kernel.
    assert (cost.kernels, cost.batch) == (1, 8)
    assert cost.flops == {"fp16": 2 * 8 * 64 * 128}
    assert cost.bytes_moved == pytest.approx(2 * (8 * 64 + 64 * 128 + 128 + 8 * 128), abs=16)


@needs_rtx
def test_an_int8_product_moves_a_byte_a_weight_and_has_more_kernels(make_model: ModelMaker) -> None:
    cost = graph_cost(layers_at(make_model("int8"), A100, 8), batch=8)
    assert cost.flops == {"int8": 2 * 8 * 64 * 128}
    # Quantise, multiply, scale and bias: x as half and Int8 twice, w as Int8, y as half thrice.
    assert cost.kernels == 3
    assert cost.bytes_moved > 8 * 64 * 4 + 64 * 128 + 3 * 2 * 8 * 128


@needs_rtx
def test_fused_attention_multiplies_twice(make_model: ModelMaker) -> None:
    cost = graph_cost(layers_at(make_model("attention"), A100, 4), batch=4)
    # 4 samples, 2 heads, 64 queries by 64 keys by 32 dimensions, two products.
    assert cost.flops == {"fp16": 2 * 2 * 4 * 2 * 64 * 64 * 32}


def test_bytes_are_every_tensor_once_in_its_own_type() -> None:
    cost = graph_cost(
        [
            layer("kgen", [tensor("Float", 2, 3), tensor("Half", 5)], [tensor("Int8", 7)], [tensor("Int4", 3)]),
            layer("signal", [tensor("Float", 100)], []),
        ],
        batch=2,
    )
    assert (cost.kernels, cost.bytes_moved, cost.flops) == (1, 24 + 10 + 7 + 2, {})


def test_products_in_every_form() -> None:
    half = [
        layer(
            "correlation", [tensor("Half", 2, 3, 8, 8)], [tensor("Half", 2, 16, 4, 4)], [tensor("Half", 16, 3, 2, 2)]
        ),
        layer("gemm", [tensor("Half", 6, 5, 4), tensor("Half", 6, 4, 7)], [tensor("Half", 6, 5, 7)]),
        # Two products of one input, merged.
        layer("gemm", [tensor("Half", 9, 8)], [tensor("Half", 9, 30)], [tensor("Half", 8, 10), tensor("Half", 8, 20)]),
        # Stored [N, K], and written in another form than [M, N].
        layer("gemm", [tensor("Half", 9, 8)], [tensor("Half", 3, 3, 2, 5)], [tensor("Half", 10, 8), tensor("Half", 1)]),
    ]
    half.append(layer("gemm", [tensor("Half", 1, 9, 8)], [tensor("Half", 1, 9, 10)], [tensor("Half", 1, 8, 10)]))
    by_hand = [2 * (2 * 16 * 4 * 4) * (3 * 2 * 2), 2 * 6 * 5 * 4 * 7, 2 * 9 * 8 * 30, 2 * 9 * 8 * 10, 2 * 9 * 8 * 10]
    assert [graph_cost([one], batch=1).flops["fp16"] for one in half] == by_hand
    assert graph_cost(half, batch=1).flops == {"fp16": sum(by_hand)}


def test_cross_attention_counts_keys_not_queries() -> None:
    query, keys, values = tensor("Half", 8, 10, 32), tensor("Half", 8, 32, 70), tensor("Half", 8, 70, 32)
    for second in (keys, values):
        one = layer("kgen", [query, second, values], [query], name="_gemm_mha_v2_0")
        assert graph_cost([one], batch=8).flops == {"fp16": 2 * 2 * 8 * 10 * 70 * 32}


@pytest.mark.parametrize(
    ("found", "match"), [(tensor("Half", -1, 4), "isn't known"), (tensor("Complex", 4), "type Complex isn't known")]
)
def test_what_cant_be_counted_is_an_error(found: EngineTensor, match: str) -> None:
    with pytest.raises(GpusqError, match=match):
        graph_cost([layer("kgen", [found], [])], batch=1)
