"""What an engine's kernels move and multiply, from its layer list: a prediction for any machine, timed on none.

A kernel is taken to read every input and constant once and to write every output once, in the types of the layer list:

    bytes = Σ over kernels, over tensors of (product of the shape) · (size of the element)

What caches save and what a kernel reads twice is not seen. FLOPs count products alone, two per multiply-accumulate:

    matrix product, x [..., K] by w [K, N]         2 · (|x| / K) · |w|
    convolution, w [N, C, h, w] into y [B, N, ...]  2 · (|y| / N) · |w|
    two activations, a [..., M, K] by b            2 · |y| · K
    fused attention, q [..., L, d], v [..., S, d]  4 · |q| · S

Shapes must be known: layers of an engine with a dynamic batch hold -1, and are refused. Build with one batch size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from gpusq_deploy.artifacts import BatchRange, EngineLayer, EngineTensor, GraphCost
from gpusq_deploy.engines.api import BackendName
from gpusq_deploy.engines.builder import EngineBuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.layer_classes import classify, weights_of
from gpusq_deploy.engines.targets import Target
from gpusq_deploy.errors import GpusqError

# Bits of one element, by the builder's names of types.
_BITS = {
    "Double": 64,
    "Float": 32,
    "Half": 16,
    "BFloat16": 16,
    "FP8": 8,
    "Int8": 8,
    "UInt8": 8,
    "Bool": 8,
    "Int32": 32,
    "Int64": 64,
    "Int4": 4,
    "FP4": 4,
}


def layers_at(
    model: Path, target: Target, batch: int, *, backend: BackendName | None = None
) -> tuple[EngineLayer, ...]:
    """Build an ONNX model for one batch size: its layers; one or two seconds for a ViT-S, six for a ViT-L.

    Args:
        model: A strongly typed model whose batch is dynamic, or `batch` itself.
        target: The GPU to build for.
        batch: The one batch size.
        backend: Who builds; None takes the target's first.

    Raises:
        GpusqError: See `build_engine`.
    """
    settings = BuildSettings(batch=BatchRange(minimum=batch, optimum=batch, maximum=batch))
    return build_engine(model, target, settings, EngineBuildOptions(backend=backend)).layers


def graph_cost(layers: Iterable[EngineLayer], *, batch: int) -> GraphCost:
    """Kernels, bytes and FLOPs of an engine's layers.

    Args:
        layers: Of one engine, in any order.
        batch: The batch size that the shapes hold, for the record.

    Raises:
        GpusqError: A tensor has a dynamic dimension, or a type of unknown size.
    """
    kernels = moved = 0
    flops: dict[str, int] = {}
    for layer in layers:
        found = classify(layer)
        if found.role == "sync":
            continue
        kernels += 1
        moved += sum(bytes_of(tensor, layer) for tensor in (*layer.inputs, *layer.constants, *layer.outputs))
        for precision, count in flops_of(layer).items():
            flops[precision] = flops.get(precision, 0) + count
    return GraphCost(batch=batch, kernels=kernels, bytes_moved=moved, flops=dict(sorted(flops.items())))


def flops_of(layer: EngineLayer) -> dict[str, int]:
    """FLOPs of a layer's products by the type that they multiply in; nothing where it has none."""
    found = classify(layer)
    if found.role not in {"gemm", "attention"}:
        return {}
    return {found.precision or "unknown": _flops(layer, attention=found.role == "attention")}


def _flops(layer: EngineLayer, *, attention: bool) -> int:
    if not layer.inputs or not layer.outputs:
        return 0
    first = layer.inputs[0]
    if attention:
        return 4 * _size(first) * _keys(first, layer.inputs[1]) if len(layer.inputs) > 1 else 0
    weights = weights_of(layer)
    if not weights:
        return 2 * _size(layer.outputs[0]) * first.shape[-1] if first.shape else 0
    if len(weights[0].shape) > 3:
        return 2 * _size(layer.outputs[0]) // weights[0].shape[0] * _size(weights[0])
    # At batch 1 a weight is written as [1, K, N].
    products = [weight for weight in weights if len(weight.shape) <= 3]
    sizes = products[0].shape[-2:]
    rows = next(
        (_size(x) // x.shape[-1] for x in layer.inputs if x.shape and x.shape[-1] in sizes),
        _size(layer.outputs[0]) // max(sizes[-1], 1),
    )
    return 2 * rows * sum(_size(weight) for weight in products)


def _keys(query: EngineTensor, other: EngineTensor) -> int:
    """How many keys a query [..., L, d] is held against, from another operand: Kᵀ [..., d, S] or V [..., S, d]."""
    return other.shape[-1] if other.shape[-2] == query.shape[-1] else other.shape[-2]


def bytes_of(tensor: EngineTensor, layer: EngineLayer) -> int:
    """Size of a tensor of a layer.

    Raises:
        GpusqError: It has a dynamic dimension, or a type of unknown size.
    """
    if min(tensor.shape, default=0) < 0:
        raise GpusqError(
            f"the size of {tensor.name!r} {list(tensor.shape)} isn't known",
            place=f"engine layer {layer.name}",
            hint="build with one batch size to estimate the cost",
        )
    bits = _BITS.get(tensor.dtype)
    if bits is None:
        raise GpusqError(f"the size of type {tensor.dtype} isn't known", place=f"engine layer {layer.name}")
    return (_size(tensor) * bits + 7) // 8


def _size(tensor: EngineTensor) -> int:
    return math.prod(tensor.shape)
