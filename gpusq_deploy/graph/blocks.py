"""Where the error of a quantised graph is looked at: behind each block of the network, and behind each layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from gpusq_deploy.graph.layers import GraphLayer, weighted_layers
from gpusq_deploy.graph.smoothable import bias_place
from gpusq_deploy.graph.values import module_of, node_name, value_name

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftSite:
    """A module, and the tensor that leaves it."""

    module: str
    tensor: str


def block_sites(model: ir.Model) -> tuple[DriftSite, ...]:
    """The blocks of a network and the layers outside them, in graph order.

    1. A block is a module whose name ends in a number, that holds two weighted layers or more, and no other block.
    2. What leaves it is the last floating tensor of it that something outside reads, or that the graph returns: in a
       transformer, the residual stream.
    3. A weighted layer in no block stands for itself, with its bias added.
    """
    layers = weighted_layers(model)
    blocks = _blocks(layers)
    leaving: dict[str, str] = {}
    for node in model.graph:
        block = _block_of(module_of(node), blocks)
        for value in node.outputs if block else ():
            if value.dtype in _FLOATS and _leaves(value, block):
                leaving[block] = value_name(value)
    sites = [DriftSite(module=block, tensor=tensor) for block, tensor in leaving.items()]
    outside = [layer for layer in layers if not _block_of(layer.layer, blocks)]
    return _in_graph_order(model, [*sites, *_layer_sites(model, outside)])


def blocks_of_nodes(model: ir.Model) -> dict[str, str]:
    """The block around each node, by the node's name; empty for nodes outside all blocks. Rule 1 of `block_sites`."""
    blocks = _blocks(weighted_layers(model))
    return {node_name(node): _block_of(module_of(node), blocks) for node in model.graph if node.name}


def layer_sites(model: ir.Model, modules: Sequence[str]) -> tuple[DriftSite, ...]:
    """The weighted layers inside the given modules, each with its bias added, in graph order."""
    inside = [layer for layer in weighted_layers(model) if any(_within(layer.layer, module) for module in modules)]
    return _in_graph_order(model, _layer_sites(model, inside))


def _blocks(layers: Sequence[GraphLayer]) -> frozenset[str]:
    inside: dict[str, int] = {}
    for layer in layers:
        for prefix in _numbered(layer.layer):
            inside[prefix] = inside.get(prefix, 0) + 1
    large = {prefix for prefix, count in inside.items() if count > 1}
    return frozenset(prefix for prefix in large if not any(other.startswith(f"{prefix}.") for other in large))


def _numbered(module: str) -> list[str]:
    """The modules around one, the innermost first, whose own name is a number."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1) if re.fullmatch(r"\d+", parts[end - 1])]


def _block_of(module: str, blocks: frozenset[str]) -> str:
    """The innermost block around a module; empty where there is none."""
    return next((prefix for prefix in (module, *_numbered(module)) if prefix in blocks), "")


def _within(module: str, other: str) -> bool:
    return f"{module}.".startswith(f"{other}.")


def _leaves(value: ir.Value, block: str) -> bool:
    return value.is_graph_output() or any(not _within(module_of(reader), block) for reader, _ in value.uses())


def _layer_sites(model: ir.Model, layers: Sequence[GraphLayer]) -> list[DriftSite]:
    nodes = {node_name(node): node for node in model.graph}
    sites: list[DriftSite] = []
    for layer in layers:
        node = nodes[layer.node]
        place = bias_place(node)
        sites.append(DriftSite(module=layer.layer, tensor=value_name((node if place is None else place[0]).outputs[0])))
    return sites


def _in_graph_order(model: ir.Model, sites: Sequence[DriftSite]) -> tuple[DriftSite, ...]:
    order = {value_name(value): index for index, node in enumerate(model.graph) for value in node.outputs}
    return tuple(sorted(sites, key=lambda site: order[site.tensor]))
