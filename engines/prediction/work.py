"""What one kernel has to do, as far as its time depends on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, replace
from typing import Literal

from gpusq_deploy.artifacts import EngineLayer, EngineTensor
from gpusq_deploy.engines.cost import bytes_of, flops_of
from gpusq_deploy.engines.layer_classes import classify, weights_of

WorkRole = Literal["gemm", "attention", "other"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One kernel.

    Attributes:
        role: A matrix product, fused attention, or neither.
        precision: What it multiplies in: "int8", "fp16" or another; empty where it multiplies nothing.
        m, n, k: Of each of `count` products [M, K] by [K, N]; of attention M queries of K channels against N keys.
        count: Products, or windows times heads.
        flops: Two per multiply-accumulate, as if dense.
        weight_bytes: Constants that it multiplies with.
        moved_bytes: Everything else that it reads and writes, each once.
        sparse: The weights are 2:4 and run on sparse tensor cores.
        nodes: ONNX nodes that it computes, by name.
    """

    role: WorkRole
    precision: str = ""
    m: int = 0
    n: int = 0
    k: int = 0
    count: int = 1
    flops: int = 0
    weight_bytes: int = 0
    moved_bytes: int = 0
    sparse: bool = False
    nodes: tuple[str, ...] = ()


def work_of(layers: Iterable[EngineLayer]) -> tuple[Work, ...]:
    """The kernels of a layer list.

    Args:
        layers: Of one engine, with known shapes.

    Raises:
        GpusqError: A tensor has a dynamic dimension, or a type of unknown size.
    """
    return tuple(_works(layers))


def with_sparse(works: Iterable[Work], nodes: Set[str]) -> tuple[Work, ...]:
    """The same kernels; products that compute one of the nodes have 2:4 weights and run on sparse tensor cores."""
    return tuple(
        replace(work, sparse=True) if work.role == "gemm" and not nodes.isdisjoint(work.nodes) else work
        for work in works
    )


def _works(layers: Iterable[EngineLayer]) -> Iterator[Work]:
    for layer in layers:
        found = classify(layer)
        if found.role == "sync":
            continue
        weights = weights_of(layer) if found.role == "gemm" else ()
        weight_bytes = sum(bytes_of(tensor, layer) for tensor in weights)
        total = sum(bytes_of(tensor, layer) for tensor in (*layer.inputs, *layer.constants, *layer.outputs))
        flops = sum(flops_of(layer).values())
        m, n, k, count = _sizes(layer, found.role, weights, flops)
        yield Work(
            role=found.role,
            precision=found.precision or "",
            m=m,
            n=n,
            k=k,
            count=count,
            flops=flops,
            weight_bytes=weight_bytes,
            moved_bytes=total - weight_bytes,
            nodes=layer.onnx_nodes,
        )


def _sizes(layer: EngineLayer, role: str, weights: tuple[EngineTensor, ...], flops: int) -> tuple[int, int, int, int]:
    """M, N, K and how many products; zeros where it is none."""
    if role == "other" or not flops:
        return 0, 0, 0, 1
    if role == "attention":
        *outer, queries, head = layer.inputs[0].shape
        count = math.prod(outer)
        return queries, flops // (4 * count * queries * head), head, count
    if weights:
        return _by_weight(weights, layer.inputs[0], flops)
    *outer, m, n = layer.outputs[0].shape
    count = math.prod(outer)
    return m, n, flops // (2 * count * m * n), count


def _by_weight(weights: tuple[EngineTensor, ...], first: EngineTensor, flops: int) -> tuple[int, int, int, int]:
    shape, given = weights[0].shape, first.shape[-1] if first.shape else 1
    if len(shape) > 3:
        n, k = shape[0], math.prod(shape[1:])
    else:
        # [K, N], or at batch 1 [1, K, N]; a transposed one is [N, K].
        sides = list(shape[-2:])
        k, n = sides if sides[0] == given else reversed(sides)
    # Several weights of one kernel are as one that is wider.
    n *= len([weight for weight in weights if weight.shape == shape])
    return max(flops // (2 * n * k), 1), n, k, 1
