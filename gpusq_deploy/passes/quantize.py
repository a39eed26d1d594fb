"""Insert Q/DQ as the plan decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.artifacts.plan import FloatPrecision, LayerDecision, PlacedQuantization, PlacedRole, Plan
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import origin
from gpusq_deploy.graph.smoothable import add_to_bias
from gpusq_deploy.graph.values import add_initializer, array_of, insert_before, value_name
from gpusq_deploy.numerics.affine import amax_per_channel, quantize, scale_from_amax

STORED_TYPE: dict[FloatPrecision, npt.DTypeLike] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
}

# Which input of its node a placed pair stands in front of.
_PLACE: dict[PlacedRole, int] = {"query": 0, "key": 1, "softmax": 0, "value": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundedWeight:
    """A Linear's weight, rounded beforehand: INT8 codes [N, K], scale [N], and what is added to the bias [N]."""

    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.floating[Any]] | None


def _no_weights() -> dict[str, RoundedWeight]:
    return {}


@dataclass(frozen=True, slots=True)
class Quantize:
    """Make INT8 layers out of the plan's decisions.

    1. A weight becomes an INT8 initializer behind a DequantizeLinear with one scale per output channel, or one in all
       where the plan says so; a transpose in front of the layer is taken into the stored codes. The float initializer
       is left alone while anything else reads it: the exporter shares equal constants between layers.
    2. An activation gets one QuantizeLinear/DequantizeLinear pair, shared by the layers that read it and agree on
       its scale.
    3. Scales hold values of the remainder's type, so that the later cast of the graph is exact and the codes belong
       to the scales that are stored.
    4. A layer that already has a DequantizeLinear on its weight is left as it is.
    5. What the plan places elsewhere gets a pair where the named node reads it, and an `output` directly behind the
       node, for all its readers; not twice.
    6. Weights in `rounded`, by node, are taken from there; their bias change is left out where there is no bias.

    The graph stays float32; `CastRemainder` makes it FP16 or BF16.
    """

    plan: Plan
    rounded: Mapping[str, RoundedWeight] = field(default_factory=_no_weights, repr=False)
    name: ClassVar[str] = "quantize"

    def run(self, model: ir.Model) -> int:
        """See the class.

        Raises:
            GpusqError: The plan doesn't belong to this graph.
        """
        nodes = {node.name: node for node in model.graph}
        stored = STORED_TYPE[self.plan.remainder]
        pairs: dict[tuple[str, float], ir.Value] = {}
        changes = 0
        for decision in self.plan.layers:
            if decision.activation is None or decision.weight is None:
                continue
            node = nodes.get(decision.node)
            if node is None:
                raise GpusqError("the plan names a node that the graph doesn't have", place=decision.node)
            if _is_quantized(node):
                continue
            _quantize_weight(model.graph, node, decision, stored, self.rounded.get(decision.node))
            _quantize_input(node, decision, pairs)
            changes += 1
        for placed in self.plan.placed:
            changes += _place(nodes, placed)
        common.RemoveUnusedNodesPass()(model)
        return changes


def _is_quantized(node: ir.Node) -> bool:
    weight, _ = origin(node.inputs[1])
    return weight is not None and weight.dtype == ir.DataType.INT8


def _place(nodes: Mapping[str | None, ir.Node], placed: PlacedQuantization) -> int:
    node = nodes.get(placed.node)
    if node is None:
        raise GpusqError("the plan names a node that the graph doesn't have", place=placed.node)
    if placed.role == "output":
        return _place_behind(node, placed)
    index = _PLACE[placed.role]
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return 0
    if value is None or value_name(value) != placed.activation.tensor:
        raise GpusqError("the plan names another tensor than the graph has", place=f"{placed.node}, {placed.role}")
    prefix = f"{placed.node}_{placed.role}"
    node.replace_input_with(index, _pair(node, value, placed.activation.scale, prefix))
    return 1


def _place_behind(node: ir.Node, placed: PlacedQuantization) -> int:
    value = node.outputs[0]
    readers = tuple(value.uses())
    if any(reader.op_type == "QuantizeLinear" for reader, _ in readers):
        return 0
    if value_name(value) != placed.activation.tensor or value.is_graph_output() or not readers:
        raise GpusqError("the plan names another tensor than the graph has", place=f"{placed.node}, {placed.role}")
    graph = node.graph
    assert graph is not None, "nodes come from the graph"
    reading = {reader for reader, _ in readers}
    first = next(other for other in graph if other in reading)
    pair = _pair(first, value, placed.activation.scale, f"{placed.node}_output")
    for reader, index in readers:
        reader.replace_input_with(index, pair)
    return 1


def _pair(node: ir.Node, value: ir.Value, scale: float, prefix: str) -> ir.Value:
    """`value` behind a QuantizeLinear and a DequantizeLinear in front of `node`."""
    if not isinstance(node.graph, ir.Graph):
        raise GpusqError("the node stands in no graph", place=str(node.name))
    step = add_initializer(node.graph, f"{prefix}_scale", np.array(scale, np.float32))
    zero_point = add_initializer(node.graph, f"{prefix}_zero_point", np.array(0, np.int8))
    q = ir.node("QuantizeLinear", [value, step, zero_point], name=f"{prefix}_q")
    codes = insert_before(node, q, like=value, dtype=ir.DataType.INT8)
    dq = ir.node("DequantizeLinear", [codes, step, zero_point], name=f"{prefix}_dq")
    return insert_before(node, dq, like=value, dtype=ir.DataType.FLOAT)


def _quantize_weight(
    graph: ir.Graph,
    node: ir.Node,
    decision: LayerDecision,
    stored: npt.DTypeLike,
    rounded: RoundedWeight | None,
) -> None:
    place, (weight, turned) = node.inputs[1], origin(node.inputs[1])
    if place is None or weight is None or decision.weight is None or value_name(weight) != decision.weight.tensor:
        raise GpusqError("the plan names another weight than the graph has", place=decision.node)
    axis = decision.weight.axis
    if rounded is None:
        codes, scale = _nearest(array_of(weight).astype(np.float32), axis, decision, stored)
    else:
        codes, scale = (rounded.codes if axis == 0 else rounded.codes.T), rounded.scale
        if rounded.bias is not None:
            add_to_bias(graph, node, rounded.bias, f"{decision.node}_bias_corrected")
    if turned:
        codes, axis = codes.T, 1 - axis
    prefix = f"{decision.node}_weight"
    if decision.weight.one_scale:
        scale = scale[:1].reshape(())
    inputs = [
        add_initializer(graph, f"{prefix}_int8", np.ascontiguousarray(codes)),
        add_initializer(graph, f"{prefix}_scale", scale),
        add_initializer(graph, f"{prefix}_zero_point", np.zeros(scale.shape, np.int8)),
    ]
    attributes = {} if decision.weight.one_scale else {"axis": axis}
    dequantize = ir.node("DequantizeLinear", inputs, attributes, name=f"{prefix}_dq")
    node.replace_input_with(1, insert_before(node, dequantize, like=place, dtype=ir.DataType.FLOAT))


def _nearest(
    values: npt.NDArray[np.float32], axis: int, decision: LayerDecision, stored: npt.DTypeLike
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    try:
        amax = amax_per_channel(values, axis)
        if decision.weight is not None and decision.weight.one_scale:
            amax = np.full_like(amax, amax.max())
        scale = scale_from_amax(amax, dtype=stored).astype(np.float32)
    except ValueError as error:
        tensor = "" if decision.weight is None else decision.weight.tensor
        raise GpusqError(
            f"the weight can't be quantised: {error}",
            place=f"{decision.layer}, tensor {tensor}",
            hint="build with --bf16 or --fp32",
        ) from error
    return quantize(values, scale, axis=axis), scale


def _quantize_input(node: ir.Node, decision: LayerDecision, pairs: dict[tuple[str, float], ir.Value]) -> None:
    activation = node.inputs[0]
    quantization = decision.activation
    if activation is None or quantization is None or value_name(activation) != quantization.tensor:
        raise GpusqError("the plan names another input than the graph has", place=decision.node)
    key = (quantization.tensor, quantization.scale)
    if key not in pairs:
        pairs[key] = _pair(node, activation, quantization.scale, f"{decision.node}_input")
    node.replace_input_with(0, pairs[key])
