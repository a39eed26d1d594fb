"""Scale and shift activations by channel, and let the layers that read them undo it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import GraphLayer, origin
from gpusq_deploy.graph.smoothable import Smoothable, add_to_bias, bias_place
from gpusq_deploy.graph.value_channels import ValueChannels
from gpusq_deploy.graph.values import add_initializer, array_of, insert_before, value_name
from gpusq_deploy.numerics import Smoothing

_SUFFIX = "smooth"
_VALUES = "_values"


@dataclass(frozen=True, kw_only=True, slots=True)
class SmoothedTensor:
    """An activation and how it is smoothed."""

    place: Smoothable
    smoothing: Smoothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """What smoothing made of a tensor [..., K]: x' = (x - z) / s, float64 [K] each."""

    factor: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]

    def undone(self, values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The tensor before it: x' · s + z."""
        return values.astype(np.float64) * self.factor + self.offset


@dataclass(frozen=True, slots=True)
class Smooth:
    """The graph computes the same function; only what stands between two layers changes. See `numerics.smoothing`.

    1. Behind a LayerNormalization: its scale is divided by s, its bias becomes (bias - z) / s.
    2. Behind a Gelu: Mul by 1/s, and Sub of z/s where z isn't zero.
    3. Behind an attention: in the layer that writes its values, the rows of the weight that write value channels are
       divided by s, and their biases become (bias - z) / s.
    4. Each reader's weight is multiplied by s along its K axis; zeros stay zeros, so 2:4 stays 2:4. Its bias grows by
       W·z, computed in float64.

    Constants are replaced, never edited: the exporter shares equal ones between layers. A tensor whose readers have
    been smoothed already is left as it is.
    """

    tensors: tuple[SmoothedTensor, ...]
    name: ClassVar[str] = "smooth"

    def run(self, model: ir.Model) -> int:
        """See the class.

        Raises:
            GpusqError: The decision doesn't belong to this graph.
        """
        nodes = {node.name: node for node in model.graph}
        changes = 0
        # Values last: the layers that write them are themselves scaled by the weights' names that the decisions know.
        for tensor in sorted(self.tensors, key=lambda tensor: tensor.place.values is not None):
            readers = [(layer, _found(nodes, layer)) for layer in tensor.place.readers]
            if all(_is_smoothed(layer, node) for layer, node in readers):
                continue
            for layer, node in readers:
                _scale_reader(model.graph, node, layer, tensor.smoothing)
            self._hand_over(model.graph, tensor, nodes, [node for _, node in readers])
            changes += 1
        return changes

    @staticmethod
    def _hand_over(
        graph: ir.Graph, tensor: SmoothedTensor, nodes: Mapping[str | None, ir.Node], readers: list[ir.Node]
    ) -> None:
        """What stands in front of the activation takes the smoothing up."""
        if tensor.place.values is not None:
            _scale_writer(graph, nodes, tensor.place.values, tensor.smoothing)
        elif tensor.place.producer == "layer-norm":
            _fold(graph, readers[0], tensor.smoothing)
        else:
            _insert(graph, readers, tensor.smoothing)


def moved_tensors(model: ir.Model, tensors: Sequence[SmoothedTensor]) -> dict[str, Moved | None]:
    """The tensors that have one name before and after the smoothing and don't mean the same, by that name.

    1. Behind a LayerNormalization or an attention: the activation itself. Behind a Gelu only new tensors are scaled.
    2. Of an attention also what the layer answers that writes its values: its value channels, the others are as before.
    3. None, for nobody needs to compare them: what lies between the two, where the channels stand in other axes; and
       products before their bias, which lack W·z.

    Args:
        model: The graph before the smoothing.
        tensors: The smoothing.
    """
    nodes = {node.name: node for node in model.graph}
    layers = [reader.node for tensor in tensors for reader in tensor.place.readers]
    layers += [tensor.place.values.writer for tensor in tensors if tensor.place.values is not None]
    products = ((nodes[layer].outputs[0], _written(nodes[layer])) for layer in layers)
    moved: dict[str, Moved | None] = {value_name(product): None for product, sum_ in products if product is not sum_}
    for tensor in tensors:
        width = len(tensor.smoothing.factor)
        if tensor.place.values is not None:
            written = _written(nodes[tensor.place.values.writer])
            moved |= {name: None for name in _between(written, _activation(nodes, tensor)) if name not in moved}
            before = moved.get(value_name(written)) or _unmoved(written)
            moved[value_name(written)] = _moved(before, tensor.place.values.channels, tensor.smoothing)
        if tensor.place.producer != "gelu":
            activation = _activation(nodes, tensor)
            moved[tensor.place.tensor] = _moved(_unmoved(activation), range(width), tensor.smoothing)
    return moved


def _written(layer: ir.Node) -> ir.Value:
    """What a layer answers, with its bias."""
    place = bias_place(layer)
    return (layer if place is None else place[0]).outputs[0]


def _activation(nodes: Mapping[str | None, ir.Node], tensor: SmoothedTensor) -> ir.Value:
    value = _found(nodes, tensor.place.readers[0]).inputs[0]
    assert value is not None, "a layer has an input"
    return value


def _unmoved(value: ir.Value) -> Moved:
    width = None if value.shape is None else value.shape[-1]
    assert isinstance(width, int), "a layer's input and output have channels"
    return Moved(factor=np.ones(width), offset=np.zeros(width))


def _moved(before: Moved, channels: Sequence[int], smoothing: Smoothing) -> Moved:
    """Also moved in these channels."""
    factor, offset = before.factor.copy(), before.offset.copy()
    factor[list(channels)], offset[list(channels)] = smoothing.factor, smoothing.offset
    return Moved(factor=factor, offset=offset)


def _between(written: ir.Value, activation: ir.Value) -> list[str]:
    """Tensors that lie on the way of values from one to the other, without the two."""
    behind = {written}
    waiting = [written]
    while waiting:
        for reader, _ in waiting.pop().uses():
            if not behind.issuperset(reader.outputs):
                behind |= {*reader.outputs}
                waiting.extend(reader.outputs)
    front, waiting = {activation}, [activation]
    while waiting:
        producer = waiting.pop().producer()
        for value in () if producer is None else _values_of(producer):
            if value is not None and value in behind and value not in front:
                front.add(value)
                waiting.append(value)
    return [value_name(value) for value in front - {written, activation}]


def _values_of(node: ir.Node) -> Sequence[ir.Value | None]:
    """A node's inputs; of the product of softmax and values the values: queries and keys are as before."""
    weights = node.inputs[0].producer() if node.op_type == "MatMul" and node.inputs[0] is not None else None
    return node.inputs[1:] if weights is not None and weights.op_type == "Softmax" else node.inputs


def _found(nodes: Mapping[str | None, ir.Node], layer: GraphLayer) -> ir.Node:
    if layer.node not in nodes:
        raise GpusqError("the smoothing names a node that the graph doesn't have", place=layer.node)
    return nodes[layer.node]


def _weight_name(node: ir.Node) -> str | None:
    weight, _ = origin(node.inputs[1])
    return None if weight is None else value_name(weight)


def _is_smoothed(layer: GraphLayer, node: ir.Node) -> bool:
    """Its columns are; its rows may be too, where it writes values."""
    smoothed = _smoothed_name(layer)
    return smoothed != layer.weight and _weight_name(node) in {smoothed, f"{smoothed}{_VALUES}"}


def _smoothed_name(layer: GraphLayer) -> str:
    return f"{layer.node}_weight_{_SUFFIX}"


def _scale_reader(graph: ir.Graph, node: ir.Node, layer: GraphLayer, smoothing: Smoothing) -> None:
    weight, turned = origin(node.inputs[1])
    if weight is None or value_name(weight) != layer.weight:
        raise GpusqError("the smoothing names another weight than the graph has", place=layer.node)
    if node.inputs[0] is None or value_name(node.inputs[0]) != layer.input:
        raise GpusqError("the smoothing names another input than the graph has", place=layer.node)
    by_rows = layer.channel_axis == 0
    stored = array_of(weight).astype(np.float32)
    rows = stored if by_rows else stored.T
    offset = smoothing.offset.astype(np.float64)
    if offset.any():
        change = rows.astype(np.float64) @ offset
        if not add_to_bias(graph, node, change, f"{layer.node}_bias_{_SUFFIX}"):
            raise GpusqError("the layer has no bias to take the offset up", place=layer.node)
    scaled = rows * smoothing.factor[None, :]
    # `by_rows` speaks of the initializer, `turned` of a transpose on the way: the new one stands at the node itself.
    seen = scaled if by_rows != turned else scaled.T
    _replace(graph, node, 1, _smoothed_name(layer), np.ascontiguousarray(seen))


def _scale_writer(
    graph: ir.Graph, nodes: Mapping[str | None, ir.Node], values: ValueChannels, smoothing: Smoothing
) -> None:
    """Rows of values are divided by s. Whether the layer's own input is smoothed too, and when, makes no difference."""
    node = nodes.get(values.writer)
    weight, turned = (None, False) if node is None else origin(node.inputs[1])
    if node is None or weight is None:
        raise GpusqError("the smoothing names a node that the graph doesn't have", place=values.writer)
    by_rows = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    seen = array_of(weight).T if turned else array_of(weight)
    factor = np.ones(seen.shape[0 if by_rows else 1])
    factor[list(values.channels)] = smoothing.factor
    offset = np.zeros_like(factor)
    offset[list(values.channels)] = smoothing.offset
    scaled = seen / (factor[:, None] if by_rows else factor)
    columns = f"{node.name}_weight_{_SUFFIX}"
    name = columns if value_name(weight) == columns else f"{node.name}_weight"
    _replace(graph, node, 1, f"{name}{_VALUES}", np.ascontiguousarray(scaled))
    place = bias_place(node)
    if place is not None:
        holder, index = place
        before = holder.inputs[index]
        assert before is not None, "bias_place has seen it"
        bias = (array_of(before).astype(np.float64) - offset) / factor
        _replace(graph, holder, index, f"{node.name}_bias{_VALUES}", bias)
    elif offset.any():
        raise GpusqError("the layer has no bias to take the offset up", place=values.writer)


def _fold(graph: ir.Graph, reader: ir.Node, smoothing: Smoothing) -> None:
    norm = None if reader.inputs[0] is None else reader.inputs[0].producer()
    scale = None if norm is None else norm.inputs[1]
    if norm is None or scale is None:
        raise GpusqError("the activation has no LayerNormalization", place=str(reader.name))
    factor = smoothing.factor.astype(np.float64)
    before = norm.inputs[2] if len(norm.inputs) > 2 else None
    bias = np.zeros_like(factor) if before is None else array_of(before).astype(np.float64)
    _replace(graph, norm, 1, f"{norm.name}_scale_{_SUFFIX}", array_of(scale).astype(np.float64) / factor)
    if before is None:
        norm.resize_inputs(3)
    _replace(graph, norm, 2, f"{norm.name}_bias_{_SUFFIX}", (bias - smoothing.offset) / factor)


def _insert(graph: ir.Graph, readers: list[ir.Node], smoothing: Smoothing) -> None:
    first = readers[0]
    activation = first.inputs[0]
    if activation is None:
        raise GpusqError("the layer has no input", place=str(first.name))
    scope = dict(first.metadata_props)
    factor = smoothing.factor.astype(np.float64)
    inverse = add_initializer(graph, f"{first.name}_input_factor", (1 / factor).astype(np.float32))
    node = ir.node("Mul", [activation, inverse], name=f"{first.name}_input_scale", metadata_props=scope)
    value = insert_before(first, node, like=activation, dtype=ir.DataType.FLOAT)
    if smoothing.offset.any():
        offset = add_initializer(graph, f"{first.name}_input_offset", (smoothing.offset / factor).astype(np.float32))
        node = ir.node("Sub", [value, offset], name=f"{first.name}_input_shift", metadata_props=dict(scope))
        value = insert_before(first, node, like=activation, dtype=ir.DataType.FLOAT)
    for reader in readers:
        reader.replace_input_with(0, value)


def _replace(graph: ir.Graph, node: ir.Node, index: int, name: str, array: npt.NDArray[np.floating[Any]]) -> None:
    node.replace_input_with(index, add_initializer(graph, name, array.astype(np.float32)))
