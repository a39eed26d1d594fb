"""Kernels out of layer lists: sizes of products and attention, and that no byte or FLOP is lost."""

from __future__ import annotations

from gpusq_deploy.artifacts.receipt import EngineLayer, EngineTensor
from gpusq_deploy.engines.cost import graph_cost
from gpusq_deploy.engines.prediction.work import Work, with_sparse, work_of


def _tensor(dtype: str, *shape: int) -> EngineTensor:
    return EngineTensor(name="t", shape=shape, dtype=dtype)


def _layer(name: str, kind: str, *tensors: tuple[EngineTensor, ...]) -> EngineLayer:
    inputs, constants, outputs = tensors
    return EngineLayer(
        name=name,
        kind=kind,
        inputs=inputs,
        constants=constants,
        outputs=outputs,
        tactic="",
        onnx_nodes=(f"{name}_node",),
    )


# As tensorrt-rtx writes them for a DeiT-S at batch 8.
PATCHES = _layer(
    "conv",
    "correlation",
    (_tensor("Int8", 8, 4, 224, 224),),
    (_tensor("Int8", 384, 4, 16, 16), _tensor("Float", 1, 384, 1, 1)),
    (_tensor("Float", 8, 384, 14, 14),),
)
QKV = _layer(
    "qkv", "gemm", (_tensor("Int8", 1576, 384),), (_tensor("Int8", 384, 1152),), (_tensor("Half", 1576, 1152),)
)
SQUARE = _layer(
    "proj", "gemm", (_tensor("Half", 1, 197, 384),), (_tensor("Half", 1, 384, 384),), (_tensor("Half", 1, 197, 384),)
)
ATTENTION = _layer(
    "_gemm_mha_v2",
    "kgen",
    (_tensor("Half", 48, 197, 64), _tensor("Half", 48, 64, 197), _tensor("Half", 48, 197, 64)),
    (),
    (_tensor("Half", 48, 197, 64),),
)
SCORES = _layer(
    "scores", "gemm", (_tensor("Half", 48, 197, 64), _tensor("Half", 48, 64, 197)), (), (_tensor("Half", 48, 197, 197),)
)
NORM = _layer("kgen", "kgen", (_tensor("Half", 1576, 384),), (), (_tensor("Int8", 1576, 384),))
WAIT = _layer("wait", "wait", (), (), ())
LAYERS = (PATCHES, QKV, SQUARE, ATTENTION, SCORES, NORM, WAIT)


def _sizes(work: Work) -> tuple[str, str, int, int, int, int]:
    return work.role, work.precision, work.m, work.n, work.k, work.count


def test_the_sizes_of_each_kernel() -> None:
    assert [_sizes(work) for work in work_of(LAYERS)] == [
        ("gemm", "int8", 8 * 14 * 14, 384, 4 * 16 * 16, 1),
        ("gemm", "int8", 1576, 1152, 384, 1),
        ("gemm", "fp16", 197, 384, 384, 1),
        ("attention", "fp16", 197, 197, 64, 48),
        ("gemm", "fp16", 197, 197, 64, 48),
        ("other", "", 0, 0, 0, 1),
    ]


def test_nothing_is_lost() -> None:
    works, cost = work_of(LAYERS), graph_cost(LAYERS, batch=8)
    assert len(works) == cost.kernels
    assert sum(work.weight_bytes + work.moved_bytes for work in works) == cost.bytes_moved
    assert sum(work.flops for work in works) == sum(cost.flops.values())


def test_only_products_of_named_nodes_become_sparse() -> None:
    nodes = frozenset({"qkv_node", "kgen_node", "_gemm_mha_v2_node"})
    assert [work.nodes for work in with_sparse(work_of(LAYERS), nodes) if work.sparse] == [("qkv_node",)]
