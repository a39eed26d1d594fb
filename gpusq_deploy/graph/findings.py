"""Q/DQ lint: what makes TensorRT refuse a graph, run it in float, or lose its accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from gpusq_deploy.artifacts import Finding
from gpusq_deploy.graph.layers import origin, weighted_layers
from gpusq_deploy.graph.provenance import is_kept
from gpusq_deploy.graph.residual import find_residuals
from gpusq_deploy.graph.spec import graph_faults
from gpusq_deploy.graph.values import node_name

_REBUILD = "build the model again with gpusq-build"
_FLOATS = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


def lint(model: ir.Model) -> Iterator[Finding]:
    """Findings in node order.

    1. `graph-invariant`: see `graph_faults`.
    2. `half-quantized`: a layer with Q/DQ on its weight or on its input, but not on both, runs in float. INT4 weights
       are meant to: there it is the other way round.
    3. `softmax-quantized`: attention probabilities near 1/N vanish under half an INT8 step.
    4. `residual-quantized`: a residual stream in INT8 rounds its few large channels' neighbours away.
    5. `mixed-remainder`: a float32 product in a graph whose other products are FP16 or BF16, unless it is marked as
       one that FP16 can't hold.
    """
    for fault in graph_faults(model):
        yield Finding(
            rule="graph-invariant", place=fault.place or "graph", what=fault.what, hint=fault.hint or _REBUILD
        )
    yield from _half_quantized(model)
    yield from _softmax_quantized(model)
    yield from _residual_quantized(model)
    yield from _mixed_remainder(model)


def _half_quantized(model: ir.Model) -> Iterator[Finding]:
    nodes = {node_name(node): node for node in model.graph}
    for layer in weighted_layers(model):
        node = nodes[layer.node]
        place = f"{layer.layer}, node {layer.node}"
        activation, weight = (_is_dequantized(value) for value in node.inputs[:2])
        stored, _ = origin(node.inputs[1])
        if stored is not None and stored.dtype == ir.DataType.INT4:
            if activation:
                what = "its input is quantised and its INT4 weight multiplies in float: it pays for the Q/DQ"
                hint = "leave the input of INT4 weights in float"
                yield Finding(rule="half-quantized", place=place, what=what, hint=hint)
        elif activation != weight:
            which, other = ("input", "weight") if activation else ("weight", "input")
            what = f"its {which} is quantised and its {other} is not: it runs in float and pays for the Q/DQ"
            yield Finding(rule="half-quantized", place=place, what=what, hint="quantise both or neither")


def _softmax_quantized(model: ir.Model) -> Iterator[Finding]:
    for node in model.graph:
        source = node.inputs[0].producer() if node.op_type == "QuantizeLinear" and node.inputs[0] is not None else None
        if source is not None and source.op_type == "Softmax":
            yield Finding(
                rule="softmax-quantized",
                place=f"node {node_name(node)}",
                what="the softmax output is quantised: on DINOv2 ViT-S/14 that costs half of the SQNR's decibels",
                hint="remove the pair; leave softmax outputs in float",
            )


def _residual_quantized(model: ir.Model) -> Iterator[Finding]:
    for residual in find_residuals(model):
        if residual.quantized:
            yield Finding(
                rule="residual-quantized",
                place=f"{residual.module}, node {residual.node}",
                what="the residual stream is quantised: on DINOv2 ViT-S/14 that costs ten decibels of SQNR",
                hint="remove the pair; leave residual adds in float",
            )


def _mixed_remainder(model: ir.Model) -> Iterator[Finding]:
    products = [node for node in model.graph if node.op_type in {"MatMul", "Gemm", "Conv"} and not is_kept(node)]
    types = {_FLOATS.get(dtype) for node in products if (dtype := node.outputs[0].dtype) is not None}
    if len(types) < 2:
        return
    for node in products:
        if node.outputs[0].dtype == ir.DataType.FLOAT:
            yield Finding(
                rule="mixed-remainder",
                place=f"node {node_name(node)}",
                what="an FP32 GEMM between FP16 ones",
                hint="cast its inputs; a strongly typed build runs it in float32",
            )


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"
