"""The weighted layers of a graph: which nodes, which weights, seen as one matrix product each."""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import LayerKind
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.values import (
    array_of,
    is_constant,
    module_of,
    node_name,
    per_sample_size,
    static_batch,
    value_name,
)
from gpusq_deploy.numerics import rows_from_conv

_EXPORT_AGAIN = "is the file damaged? export the model again"
# Output channels, input channels, and one of the kernel or more.
_LEAST_AXES_OF_CONV = 3
_THROUGH = frozenset({"DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Identity"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_RESHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})


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
        only_seen: True where the layer can be checked and no pass of ours rewrites it: its weight passes a Reshape or a
            Transpose of more than two axes, or is the product's first operand. `channel_axis` is then that of the
            operand as the node reads it.
        operand: Which input of the node the weight is.
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
    only_seen: bool = False
    operand: int = 1


def weighted_layers(model: ir.Model, *, only_seen: bool = False) -> tuple[GraphLayer, ...]:
    """Every layer with a constant weight, in graph order, quantised or not.

    Args:
        model: The graph.
        only_seen: Also those that can be checked and not rewritten; see `GraphLayer`.
    """
    batch = static_batch(model.graph) or 1
    found = [
        layer
        for node in model.graph
        if node.op_type in _PRODUCTS and len(node.inputs) > 1
        if (layer := _layer(node, batch) or (_seen_layer(node, batch) if only_seen else None)) is not None
    ]
    counts = Counter(layer.layer for layer in found)
    return tuple(_renamed(layer) if counts[layer.layer] > 1 else layer for layer in found)


def weight_rows(model: ir.Model, layer: GraphLayer) -> npt.NDArray[Any]:
    """The layer's stored weight (float or INT8 codes) as rows along the axis that sparse tensor cores contract.

    Returns:
        Linear: [N, K]. Conv: [N · kernel positions, channels].
    """
    if layer.only_seen:
        weight = _operand(next(node for node in model.graph if node.name == layer.node).inputs[layer.operand])
    else:
        weight = array_of(model.graph.initializers[layer.weight])
    if weight.ndim > 2:
        return rows_from_conv(weight)
    return weight if layer.channel_axis == 0 else weight.T


def origin(value: ir.Value | None) -> tuple[ir.Value | None, bool]:
    """Follow a value back through Q/DQ, casts and 2-D transposes to what it holds; the flag says: transposed."""
    transposed = False
    while value is not None and (producer := value.producer()) is not None and producer.op_type in _THROUGH:
        if producer.op_type == "Transpose":
            order = _order(producer)
            if order not in ([0, 1], [1, 0]):
                break
            transposed ^= order == [1, 0]
        value = producer.inputs[0]
    return value, transposed


def _order(transpose: ir.Node) -> list[int]:
    """Its permutation; where it names none, it reverses the axes."""
    value = transpose.inputs[0]
    axes = 2 if value is None or value.shape is None else value.shape.rank()
    return list(transpose.attributes.get_ints("perm", list(reversed(range(axes)))))


def _layer(node: ir.Node, batch: int) -> GraphLayer | None:
    weight, transposed = origin(node.inputs[1])
    activation = node.inputs[0]
    if weight is None or activation is None or not is_constant(weight) or weight.shape is None:
        return None
    shape = weight.shape.numpy()
    if node.op_type == "Conv":
        return _conv(node, activation, weight, batch)
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
    if len(shape) < _LEAST_AXES_OF_CONV:
        raise GpusqError(
            f"a Conv's weight has at least 3 axes, {value_name(weight)} has {len(shape)}",
            place=f"node {node_name(node)}",
            hint=_EXPORT_AGAIN,
        )
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


def _seen_layer(node: ir.Node, batch: int) -> GraphLayer | None:
    """The layer as its node reads the weight; None where neither operand is a constant matrix or kernel."""
    for operand in (1,) if node.op_type == "Conv" else (1, 0):
        root, activation = _seen_weight(node, operand), node.inputs[1 - operand]
        if root is None or activation is None:
            continue
        shape = _operand(node.inputs[operand]).shape
        channel_axis = _channel_axis(node, operand)
        n = shape[channel_axis]
        k = math.prod(shape) // max(n, 1)
        return GraphLayer(
            layer=module_of(node) or node_name(node),
            node=node_name(node),
            kind="conv" if node.op_type == "Conv" else "linear",
            input=value_name(activation),
            weight=value_name(root),
            channel_axis=channel_axis,
            n=n,
            k=k,
            macs=(per_sample_size(node.outputs[0]) or 0) // batch * k,
            only_seen=True,
            operand=operand,
        )
    return None


def _seen_weight(node: ir.Node, operand: int) -> ir.Value | None:
    """What is stored of a constant of two axes, or of at least three for a Conv; None where it isn't one."""
    root, _ = _steps_to(node.inputs[operand])
    if root is None or not is_constant(root):
        return None
    axes = _operand(node.inputs[operand]).ndim
    return root if (axes >= _LEAST_AXES_OF_CONV if node.op_type == "Conv" else axes == 2) else None


def _channel_axis(node: ir.Node, operand: int) -> int:
    """The axis of output channels: of a product's second operand the columns, of its first the rows."""
    if node.op_type == "Conv":
        return 0
    flag = node.attributes.get_int("transB" if operand else "transA", 0) if node.op_type == "Gemm" else 0
    return operand ^ flag


def _steps_to(value: ir.Value | None) -> tuple[ir.Value | None, list[ir.Node]]:
    """Where a weight comes from, and the nodes on its way from there."""
    steps: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None:
        known = node.op_type in _RESHAPES and all(is_constant(value) for value in node.inputs[1:])
        if node.op_type not in _THROUGH and not known:
            break
        steps.insert(0, node)
        value = node.inputs[0]
    return value, steps


def _operand(value: ir.Value | None) -> npt.NDArray[Any]:
    """The stored weight in the shape that its reader sees."""
    root, steps = _steps_to(value)
    if root is None:
        raise GpusqError("the weight comes from nowhere", place="the graph", hint=_EXPORT_AGAIN)
    return functools.reduce(_moved, steps, array_of(root))


def _moved(array: npt.NDArray[Any], node: ir.Node) -> npt.NDArray[Any]:
    try:
        return _in_shape(array, node)
    except (ValueError, IndexError) as error:
        what = f"a weight of shape {list(array.shape)} can't pass this {node.op_type}: {error}"
        raise GpusqError(what, place=f"node {node_name(node)}", hint=_EXPORT_AGAIN) from error


def _in_shape(array: npt.NDArray[Any], node: ir.Node) -> npt.NDArray[Any]:
    """What a node makes of a weight's shape; Q/DQ and casts leave it."""
    given = node.inputs[1] if node.op_type in _RESHAPES and len(node.inputs) > 1 else None
    numbers = [] if given is None else [int(number) for number in array_of(given)]
    match node.op_type:
        case "Transpose":
            return array.transpose(_order(node) if "perm" in node.attributes else None)
        case "Reshape":  # in ONNX, 0 keeps a dimension
            return array.reshape([number or array.shape[axis] for axis, number in enumerate(numbers)])
        case "Squeeze":
            return array.squeeze(tuple(numbers) or None)
        case "Unsqueeze":
            return np.expand_dims(array, tuple(numbers))
        case "Flatten":
            rows = math.prod(array.shape[: node.attributes.get_int("axis", 1)])
            return array.reshape(rows, -1)
        case _:
            return array


def _renamed(layer: GraphLayer) -> GraphLayer:
    return replace(layer, layer=f"{layer.layer}/{layer.node}")
