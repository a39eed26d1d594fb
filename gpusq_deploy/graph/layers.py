"""The weighted layers of a graph: which nodes, which weights, seen as one matrix product each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts.plan import LayerKind
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.mapped import release
from gpusq_deploy.graph.values import (
    array_of,
    is_constant,
    module_of,
    node_name,
    per_sample_size,
    static_batch,
    value_name,
)
from gpusq_deploy.numerics.sparsity import rows_from_conv
from gpusq_deploy.sparsity import LayerWeight

_EXPORT_AGAIN = "is the file damaged? export the model again"
_THROUGH = frozenset({"DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Identity"})


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphLayer:
    """One MatMul, Gemm or Conv with a constant weight.

    Attributes:
        layer: Name of the torch module, made unique; the node's name where there is none.
        node: Name of the ONNX node.
        kind: `linear`, `patch_embed` (a Conv whose kernel equals its stride), or `conv`.
        input: Name of the activation.
        weight: Name of the initializer that holds the weight.
        channel_axis: The initializer's axis of output channels.
        n: Output channels; k: length of the contracted axis (for a Conv: channels per group · kernel size).
        macs: Multiply-accumulates of one sample; 0 where a shape is unknown.
        reshaped: Whether a Reshape stands between the initializer and the node; `channel_axis` is then the node's.
    """

    layer: str
    node: str
    kind: LayerKind
    input: str
    weight: str
    channel_axis: int
    n: int
    k: int
    macs: int
    reshaped: bool = False


def weighted_layers(model: ir.Model, *, reshaped: bool = False) -> tuple[GraphLayer, ...]:
    """Every layer with a constant weight, in graph order, quantised or not.

    Args:
        model: The graph.
        reshaped: Also those whose weight passes a Reshape. They can be looked at; no pass of ours rewrites them.
    """
    batch = static_batch(model.graph) or 1
    found = [layer for node in model.graph if (layer := _layer(node, batch, reshaped=reshaped)) is not None]
    counts = Counter(layer.layer for layer in found)
    return tuple(_renamed(layer) if counts[layer.layer] > 1 else layer for layer in found)


def weight_rows(model: ir.Model, layer: GraphLayer) -> npt.NDArray[Any]:
    """The layer's stored weight (float or INT8 codes) as rows along the axis that sparse tensor cores contract.

    Returns:
        Linear: [N, K]. Conv: [N · kernel positions, channels].
    """
    if layer.reshaped:
        weight = _stored(next(node for node in model.graph if node.name == layer.node).inputs[1])
    else:
        weight = array_of(model.graph.initializers[layer.weight])
    if weight.ndim > 2:
        return rows_from_conv(weight)
    return weight if layer.channel_axis == 0 else weight.T


def graph_weights(model: ir.Model, layers: Iterable[GraphLayer]) -> Iterator[LayerWeight]:
    """The layers' stored weights as the 2:4 check sees them, one at a time: a mapped one is let go for the next."""
    for layer in layers:
        rows = weight_rows(model, layer)
        yield LayerWeight(
            layer=layer.layer,
            tensor=layer.weight,
            kind=layer.kind,
            rows=rows,
            positions=len(rows) // max(layer.n, 1),
            macs=layer.macs,
        )
        release(model.graph.initializers[layer.weight])


def origin(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """Follow a value back through Q/DQ, casts and 2-D transposes to what it holds; the flag says: transposed."""
    transposed = False
    while value is not None and (producer := value.producer()) is not None and producer.op_type in _THROUGH:
        transposed ^= producer.op_type == "Transpose" and producer.attributes.get_ints("perm", [1, 0])[0] != 0
        value = producer.inputs[0]
    return value, transposed


def _layer(node: ir.Node, batch: int, *, reshaped: bool) -> GraphLayer | None:
    if node.op_type not in {"MatMul", "Gemm", "Conv"} or len(node.inputs) < 2:
        return None
    weight, transposed = origin(node.inputs[1])
    if reshaped and _is_reshape(weight):
        return _reshaped_layer(node, batch)
    activation = node.inputs[0]
    if weight is None or activation is None or not is_constant(weight) or weight.shape is None:
        return None
    shape = weight.shape.numpy()
    if node.op_type == "Conv":
        return None if transposed else _conv(node, activation, weight, batch)
    if len(shape) != 2:
        return None
    transposed ^= node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    channel_axis = 0 if transposed else 1
    n, k = shape[channel_axis], shape[1 - channel_axis]
    return GraphLayer(
        layer=module_of(node) or node_name(node),
        node=node_name(node),
        kind="linear",
        input=value_name(activation),
        weight=value_name(weight),
        channel_axis=channel_axis,
        n=n,
        k=k,
        macs=(per_sample_size(node.outputs[0]) or 0) // batch * k,
    )


def _conv(node: ir.Node, activation: ir.Value, weight: ir.Value, batch: int) -> GraphLayer:
    shape = array_of(weight).shape
    kernel = shape[2:]
    strides = tuple(node.attributes.get_ints("strides", [1] * len(kernel)))
    patches = strides == kernel and node.attributes.get_int("group", 1) == 1 and max(kernel) > 1
    k = shape[1]
    for side in kernel:
        k *= side
    return GraphLayer(
        layer=module_of(node) or node_name(node),
        node=node_name(node),
        kind="patch_embed" if patches else "conv",
        input=value_name(activation),
        weight=value_name(weight),
        channel_axis=0,
        n=shape[0],
        k=k,
        macs=(per_sample_size(node.outputs[0]) or 0) // batch * k,
    )


def _is_reshape(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.op_type == "Reshape"


def _reshaped_layer(node: ir.Node, batch: int) -> GraphLayer | None:
    """The layer as its node sees the weight; None where the weight isn't constant or isn't one product's."""
    root, _ = _steps_to(node.inputs[1])
    activation = node.inputs[0]
    if root is None or not is_constant(root) or activation is None:
        return None
    shape = _stored(node.inputs[1]).shape
    if len(shape) < 2 or (len(shape) > 2) != (node.op_type == "Conv"):
        return None
    by_rows = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)
    n = shape[0 if by_rows else 1]
    k = math.prod(shape) // max(n, 1)
    return GraphLayer(
        layer=module_of(node) or node_name(node),
        node=node_name(node),
        kind="conv" if node.op_type == "Conv" else "linear",
        input=value_name(activation),
        weight=value_name(root),
        channel_axis=0 if by_rows else 1,
        n=n,
        k=k,
        macs=(per_sample_size(node.outputs[0]) or 0) // batch * k,
        reshaped=True,
    )


def _steps_to(value: ir.Value | None) -> tuple[ir.Value | None, list[ir.Node]]:
    """Where a weight comes from, and the nodes on its way from there."""
    steps: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in _THROUGH and not (node.op_type == "Reshape" and is_constant(node.inputs[1])):
            break
        steps.insert(0, node)
        value = node.inputs[0]
    return value, steps


def _stored(value: ir.Value | None) -> npt.NDArray[Any]:
    """The stored weight in the shape that its reader sees."""
    root, steps = _steps_to(value)
    if root is None:
        raise GpusqError("the weight comes from nowhere", place="the graph", hint=_EXPORT_AGAIN)
    array = array_of(root)
    for node in steps:
        if node.op_type == "Transpose":
            array = array.transpose(node.attributes.get_ints("perm", list(reversed(range(array.ndim)))))
        elif node.op_type == "Reshape" and node.inputs[1] is not None:
            sizes = [int(size) for size in array_of(node.inputs[1])]
            try:  # in ONNX, 0 keeps a dimension
                array = array.reshape([size or array.shape[axis] for axis, size in enumerate(sizes)])
            except (ValueError, IndexError) as error:
                what = f"a weight of shape {list(array.shape)} can't become {sizes}"
                raise GpusqError(what, place=f"node {node_name(node)}", hint=_EXPORT_AGAIN) from error
    return array


def _renamed(layer: GraphLayer) -> GraphLayer:
    return replace(layer, layer=f"{layer.layer}/{layer.node}")
