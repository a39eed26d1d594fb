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

from gpusq_deploy.artifacts import FloatPrecision, LayerDecision, PlacedQuantization, PlacedRole, QuantPlan
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import origin
from gpusq_deploy.graph.passes.weight_codes import (
    CODE_TYPES,
    StoredWeight,
    fp8_weight,
    int4_weight,
    int8_weight,
    zero_points,
)
from gpusq_deploy.graph.smoothable import add_to_bias
from gpusq_deploy.graph.values import add_initializer, array_of, insert_before, value_name
from gpusq_deploy.numerics import int4_blocks, quantize, weight_scales

STORED_TYPE: dict[FloatPrecision, npt.DTypeLike] = {
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
}

# Which input of its node a placed pair stands in front of.
_PLACE: dict[PlacedRole, int] = {"query": 0, "key": 1, "softmax": 0, "value": 1}
# These may stand at either side of their Add.
_RESIDUAL = frozenset({"residual", "branch"})


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundedWeight:
    """A weight, rounded beforehand: codes [N, …], scale [N], and what is added to the bias [N].

    The codes are INT8's, E4M3 numbers or, [N, K] with scale [N, K / block], INT4's.
    """

    codes: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    bias: npt.NDArray[np.floating[Any]] | None


def rounded_to_nearest(rows: npt.NDArray[np.float32], decision: LayerDecision, stored: npt.DTypeLike) -> RoundedWeight:
    """What becomes of an INT8 layer's weight [N, K] that nobody rounded beforehand; `stored` is its scales' type."""
    one_scale = decision.weight is not None and decision.weight.one_scale
    scale = weight_scales(rows, 0, dtype=stored, one_scale=one_scale)
    return RoundedWeight(codes=quantize(rows, scale, axis=0), scale=scale, bias=None)


def _no_weights() -> dict[str, RoundedWeight]:
    return {}


@dataclass(frozen=True, slots=True)
class Quantize:
    """Make INT8, FP8 and INT4 layers out of the plan's decisions.

    1. A weight becomes an initializer of codes behind a DequantizeLinear with one scale per output channel (INT4: per
       channel and block), or one in all where the plan says so; a transpose in front of the layer is taken into the
       stored codes. The float initializer is left alone while anything else reads it: the exporter shares equal
       constants between layers.
    2. An activation gets one QuantizeLinear/DequantizeLinear pair, shared by the layers that read it and agree on
       its scale and type; in front of INT4 weights it stays as it is.
    3. Scales hold values of the float type, so that the later cast of the graph is exact and the codes belong
       to the scales that are stored.
    4. A layer that already has a DequantizeLinear on its weight is left as it is.
    5. What the plan places elsewhere gets a pair where the named node reads it, and an `output` directly behind the
       node, for all its readers; not twice.
    6. Weights in `rounded`, by node, are taken from there; their bias change is left out where there is
       no bias.

    The graph stays float32; `CastToFloatType` makes it FP16 or BF16.
    """

    plan: QuantPlan
    rounded: Mapping[str, RoundedWeight] = field(default_factory=_no_weights, repr=False)
    name: ClassVar[str] = "quantize"

    def run(self, model: ir.Model) -> int:
        """See the class.

        Raises:
            GpusqError: The plan doesn't belong to this graph.
        """
        nodes = {node.name: node for node in model.graph}
        stored = STORED_TYPE[self.plan.float_type]
        pairs: dict[tuple[str, float, str], ir.Value] = {}
        changes = 0
        for decision in self.plan.layers:
            if decision.weight is None:
                continue
            node = nodes.get(decision.node)
            if node is None:
                raise GpusqError("the plan names a node that the graph doesn't have", place=decision.node)
            if _is_quantized(node):
                continue
            _quantize_weight(model.graph, node, decision, stored, self.rounded.get(decision.node))
            if decision.activation is not None:
                _quantize_input(node, decision, pairs)
            changes += 1
        for placed in self.plan.placed:
            changes += _place(nodes, placed)
        common.RemoveUnusedNodesPass()(model)
        return changes


def _is_quantized(node: ir.Node) -> bool:
    weight, _ = origin(node.inputs[1])
    return weight is not None and weight.dtype in CODE_TYPES.values()


def _place(nodes: Mapping[str | None, ir.Node], placed: PlacedQuantization) -> int:
    node = nodes.get(placed.node)
    if node is None:
        raise GpusqError("the plan names a node that the graph doesn't have", place=placed.node)
    if placed.role == "output":
        return _place_behind(node, placed)
    index = _index(node, placed)
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        return 0
    if value is None or value_name(value) != placed.activation.tensor:
        raise GpusqError("the plan names another tensor than the graph has", place=f"{placed.node}, {placed.role}")
    prefix = f"{placed.node}_{placed.role}"
    node.replace_input_with(index, _pair(node, value, placed.activation.scale, prefix))
    return 1


def _index(node: ir.Node, placed: PlacedQuantization) -> int:
    """Which input of the node is meant. A residual's is known by its name, also behind the pair that it has already."""
    if placed.role not in _RESIDUAL:
        return _PLACE[placed.role]
    for index, value in enumerate(node.inputs):
        while value is not None and value_name(value) != placed.activation.tensor:
            producer = value.producer()
            coded = producer is not None and producer.op_type in {"DequantizeLinear", "QuantizeLinear"}
            value = producer.inputs[0] if producer is not None and coded else None
        if value is not None:
            return index
    return 0


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


def _pair(
    node: ir.Node, value: ir.Value, scale: float, prefix: str, *, codes: ir.DataType = ir.DataType.INT8
) -> ir.Value:
    """`value` behind a QuantizeLinear and a DequantizeLinear in front of `node`."""
    if not isinstance(node.graph, ir.Graph):
        raise GpusqError("the node stands in no graph", place=str(node.name))
    step = add_initializer(node.graph, f"{prefix}_scale", np.array(scale, np.float32))
    zero_point = add_initializer(node.graph, f"{prefix}_zero_point", zero_points((), codes))
    q = ir.node("QuantizeLinear", [value, step, zero_point], name=f"{prefix}_q")
    coded = insert_before(node, q, like=value, dtype=codes)
    dq = ir.node("DequantizeLinear", [coded, step, zero_point], name=f"{prefix}_dq")
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
    if rounded is not None and rounded.bias is not None:
        add_to_bias(graph, node, rounded.bias, f"{decision.node}_bias_corrected")
    content = _content(array_of(weight).astype(np.float32), decision, stored, rounded)
    if turned:
        content = content.turned()
    prefix = f"{decision.node}_weight"
    inputs = [
        add_initializer(graph, f"{prefix}_{decision.precision}", np.ascontiguousarray(content.codes)),
        add_initializer(graph, f"{prefix}_scale", np.array(content.scale, order="C")),
    ]
    if not content.block:
        zeros = zero_points(content.scale.shape, CODE_TYPES[decision.precision])
        inputs.append(add_initializer(graph, f"{prefix}_zero_point", zeros))
    dequantize = ir.node("DequantizeLinear", inputs, content.attributes, name=f"{prefix}_dq")
    node.replace_input_with(1, insert_before(node, dequantize, like=place, dtype=ir.DataType.FLOAT))


def _content(
    values: npt.NDArray[np.float32], decision: LayerDecision, stored: npt.DTypeLike, rounded: RoundedWeight | None
) -> StoredWeight:
    weight = decision.weight
    assert weight is not None, "only decisions with a weight come here"
    try:
        if decision.precision == "fp8":
            if rounded is None:
                return fp8_weight(values, weight.axis, stored)
            codes = rounded.codes if weight.axis == 0 else rounded.codes.T
            return StoredWeight(codes=codes, scale=rounded.scale, axis=weight.axis)
        if decision.precision == "int4":
            rows = values if weight.axis == 0 else values.T
            if rounded is None:
                return int4_weight(*int4_blocks(rows, weight.block, dtype=stored), weight.axis, weight.block)
            return int4_weight(rounded.codes, rounded.scale, weight.axis, weight.block)
        if rounded is not None:
            codes = rounded.codes if weight.axis == 0 else rounded.codes.T
            return int8_weight(codes, rounded.scale, weight.axis, one_scale=weight.one_scale)
        scale = weight_scales(values, weight.axis, dtype=stored, one_scale=weight.one_scale)
        codes = quantize(values, scale, axis=weight.axis)
        return int8_weight(codes, scale, weight.axis, one_scale=weight.one_scale)
    except ValueError as error:
        raise GpusqError(
            f"the weight can't be quantised: {error}",
            place=f"{decision.layer}, tensor {weight.tensor}",
            hint="build with --bf16 or --fp32",
        ) from error


def _quantize_input(node: ir.Node, decision: LayerDecision, pairs: dict[tuple[str, float, str], ir.Value]) -> None:
    activation = node.inputs[0]
    quantization = decision.activation
    if activation is None or quantization is None or value_name(activation) != quantization.tensor:
        raise GpusqError("the plan names another input than the graph has", place=decision.node)
    key = (quantization.tensor, quantization.scale, decision.precision)
    if key not in pairs:
        codes = CODE_TYPES[decision.precision]
        pairs[key] = _pair(node, activation, quantization.scale, f"{decision.node}_input", codes=codes)
    node.replace_input_with(0, pairs[key])
