"""Which ONNX node of one model is which of another, though exporters name nodes and modules as they like. Pure.

1. Nodes of one name, operator, module and size are the same node.
2. The rest are aligned in the graphs' order (`difflib.SequenceMatcher`, the longest equal run first) by operator and,
   of a layer's product, by its sizes [N, K]. Nodes of the first rule keep the alignment in step.

What a quantiser or a cast adds is no part of the model and isn't matched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

from gpusq_deploy.graph import NodeFact

_ADDED = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})


def match_nodes(base: Sequence[NodeFact], head: Sequence[NodeFact]) -> dict[str, str]:
    """Of nodes of `head`, the node of `base` that each is, by name; nodes without a counterpart are left out."""
    sides = [[node for node in nodes if node.operator not in _ADDED] for nodes in (base, head)]
    known = {_whole(node) for node in sides[0]} & {_whole(node) for node in sides[1]}
    keys = [[_whole(node) if _whole(node) in known else _alike(node) for node in nodes] for nodes in sides]
    found = {node.name: node.name for node in sides[1] if _whole(node) in known}
    # Whole keys are unique, so equal runs of them are the same nodes again.
    for block in SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_matching_blocks():
        for step in range(block.size):
            ours, theirs = sides[0][block.a + step], sides[1][block.b + step]
            found.setdefault(theirs.name, ours.name)
    return found


def match_layers(base: Sequence[NodeFact], head: Sequence[NodeFact], nodes: Mapping[str, str]) -> dict[str, str]:
    """The same of layers, by the names that plans give them."""
    ours = {node.name: node.layer for node in base if node.layer}
    return {node.layer: ours[nodes[node.name]] for node in head if node.layer and nodes.get(node.name) in ours}


def _whole(node: NodeFact) -> tuple[str, ...]:
    return (node.name, *_alike(node), node.module)


def _alike(node: NodeFact) -> tuple[str, ...]:
    return (node.operator, *map(str, node.sizes))
