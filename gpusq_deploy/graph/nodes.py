"""Of each node of a graph, what two exports of one model have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import onnx_ir as ir

from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.values import module_of, node_name

# A Gemm is a MatMul with its Add in one node: which one an exporter writes says nothing about the model.
_ONE_NAME = {"Gemm": "MatMul"}


class NodeFact(NamedTuple):
    """One node.

    Attributes:
        name: Its name, or where it has none the name of its output.
        operator: The ONNX operator; MatMul for a Gemm.
        module: Dotted name of the module that it came from; empty where that isn't recorded.
        sizes: Output channels and contracted length of a layer's product; empty of every other node.
        layer: The layer whose product it is, as a plan names it; else empty.
    """

    name: str
    operator: str
    module: str = ""
    sizes: tuple[int, ...] = ()
    layer: str = ""


def node_facts(model: ir.Model) -> tuple[NodeFact, ...]:
    """Every node in the graph's order; no weight is read."""
    return tuple(_facts(model))


def _facts(model: ir.Model) -> Iterator[NodeFact]:
    layers = {layer.node: layer for layer in weighted_layers(model)}
    for node in model.graph:
        name = node_name(node)
        layer = layers.get(name)
        yield NodeFact(
            name=name,
            operator=_ONE_NAME.get(node.op_type, node.op_type),
            module=module_of(node),
            sizes=() if layer is None else (layer.n, layer.k),
            layer="" if layer is None else layer.layer,
        )
