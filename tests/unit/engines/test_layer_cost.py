"""Costs by layer of the model: nothing is lost or counted twice, and the verdicts follow from counts made by hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gpusq_deploy.artifacts.receipt import EngineLayer, EngineTensor, LayerShare, Payoff
from gpusq_deploy.bundle.report.cost_text import layer_cost_text
from gpusq_deploy.engines.cost import graph_cost, layers_at
from gpusq_deploy.engines.layer_cost import compared, layer_shares, payoff
from gpusq_deploy.engines.targets import Peaks, find_target
from gpusq_deploy.graph.files import load_model
from gpusq_deploy.graph.layers import weighted_layers

ModelMaker = Callable[..., Path]
A100 = find_target("a100")
# 100 FLOPs, 200 operations or 1 byte a microsecond.
SLOW = Peaks(fp16_tflops=1e-4, int8_tops=2e-4, gigabytes_per_second=1e-3, source="made up")


def tensor(name: str, dtype: str, *shape: int) -> EngineTensor:
    return EngineTensor(name=name, shape=shape, dtype=dtype)


def kernel(
    kind: str, inputs: list[EngineTensor], outputs: list[EngineTensor], weight: EngineTensor | None, *nodes: str
) -> EngineLayer:
    return EngineLayer(
        name=kind,
        kind=kind,
        inputs=tuple(inputs),
        constants=() if weight is None else (weight,),
        outputs=tuple(outputs),
        tactic="",
        onnx_nodes=nodes,
    )


def chain(dtype: str) -> list[EngineLayer]:
    """Something, a product of 4 by 2 by 3, something, a product of 4 by 3 by 5, something."""
    return [
        kernel("kgen", [tensor("input", "Half", 4, 2)], [tensor("a", dtype, 4, 2)], None, "first"),
        kernel("gemm", [tensor("a", dtype, 4, 2)], [tensor("b", "Half", 4, 3)], tensor("w", dtype, 2, 3), "one"),
        kernel("signal", [], [], None),
        kernel("kgen", [tensor("b", "Half", 4, 3)], [tensor("c", dtype, 4, 3)], None, "gelu", "one"),
        kernel("gemm", [tensor("c", dtype, 4, 3)], [tensor("d", "Half", 4, 5)], tensor("v", dtype, 3, 5), "two"),
        kernel("kgen", [tensor("d", "Half", 4, 5)], [tensor("e", "Half", 4, 5)], None, "last"),
    ]


NODES = {"one": "fc1", "two": "fc2"}


def test_kernels_and_bytes_of_two_layers_counted_by_hand() -> None:
    half, int8 = (layer_shares(chain(dtype), NODES, None) for dtype in ("Half", "Int8"))
    # fc1: input, a twice, w, b twice. fc2: c twice, v, d twice, e.
    assert half["fc1"].bytes_moved == 2 * (8 + 8 + 8 + 6 + 12 + 12)
    assert int8["fc1"].bytes_moved == 2 * 8 + (8 + 8 + 6) + 2 * (12 + 12)
    assert half["fc2"].bytes_moved == 2 * (12 + 12 + 15 + 20 + 20 + 20)
    assert int8["fc2"].bytes_moved == (12 + 12 + 15) + 2 * (20 + 20 + 20)
    assert (half["fc1"].kernels, half["fc2"].kernels) == (3, 2)
    assert (half["fc1"].flops, int8["fc2"].flops) == ({"fp16": 2 * 4 * 2 * 3}, {"int8": 2 * 4 * 3 * 5})
    assert half["fc1"].microseconds is None


def test_time_is_that_of_bytes_or_products_whichever_is_longer() -> None:
    found = layer_shares(chain("Int8"), NODES, SLOW)
    # Every kernel moves more microseconds' worth of bytes than it multiplies.
    assert found["fc1"].microseconds == pytest.approx(found["fc1"].bytes_moved)
    fast = Peaks(fp16_tflops=1e-4, int8_tops=2e-4, gigabytes_per_second=1e9, source="made up")
    products = layer_shares(chain("Int8"), NODES, fast)
    assert products["fc2"].microseconds == pytest.approx(2 * 4 * 3 * 5 / 200, rel=1e-3)
    assert layer_shares(chain("Half"), NODES, fast)["fc2"].microseconds == pytest.approx(120 / 100, rel=1e-3)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)
@pytest.mark.parametrize("form", ["fp16", "int8", "attention"])
def test_the_layers_of_an_engine_add_up_to_its_cost(make_model: ModelMaker, form: str) -> None:
    path = make_model(form)
    layers = layers_at(path, A100, 4)
    nodes = {layer.node: layer.layer for layer in weighted_layers(load_model(path))}
    shares, whole = layer_shares(layers, nodes, A100.peaks).values(), graph_cost(layers, batch=4)
    assert sum(share.kernels for share in shares) == whole.kernels
    assert sum(share.bytes_moved for share in shares) == whole.bytes_moved
    assert sum(sum(share.flops.values()) for share in shares) == sum(whole.flops.values())


def share(kernels: int, moved: int, microseconds: float | None = None) -> LayerShare:
    return LayerShare(kernels=kernels, bytes_moved=moved, flops={}, microseconds=microseconds)


@pytest.mark.parametrize(
    ("built", "other", "pays"),
    [
        (share(3, 90), share(2, 100), "unknown"),
        (share(2, 90), share(2, 100), "yes"),
        (share(3, 110), share(2, 100), "no"),
        (share(3, 110, 9.0), share(2, 100, 10.0), "yes"),
        (share(2, 90, 11.0), share(2, 100, 10.0), "no"),
        (share(2, 90, 10.1), share(2, 100, 10.0), "no difference"),
    ],
)
def test_the_verdict(built: LayerShare, other: LayerShare, pays: Payoff) -> None:
    assert payoff(built, other) == pays


def test_only_what_both_sides_have_is_compared_and_said() -> None:
    sides: list[Mapping[str, LayerShare]] = [{"a": share(3, 2_000_000, 4.0)}, {"a": share(2, 1_000_000, 2.0)}]
    (cost,) = compared(sides[0], sides[1], ["a", "b"])
    assert layer_cost_text(cost) == (
        "INT8 is predicted not to pay: 3 kernels, 2.00 MB, at least 4.0 µs with INT8; "
        "2 kernels, 1.00 MB, at least 2.0 µs without"
    )
