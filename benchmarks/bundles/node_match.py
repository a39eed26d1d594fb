"""Which ONNX node of one model is which of another, though exporters name nodes and modules as they like. Pure.

1. Nodes of one name, operator, module and size are the same node.
2. Layers' products are aligned in the graphs' order by operator and sizes [N, K]: the longest common subsequence, for
   equal blocks would let a greedy match slip by one.
3. What stands between two such pairs is aligned by operator (`difflib.SequenceMatcher`, the longest equal run first).
Nodes of the first rule keep both alignments in step.

What a quantiser or a cast adds is no part of the model and isn't matched.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from gpusq_deploy.graph import NodeFact

_Key = tuple[str, ...]

_ADDED = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})


def match_nodes(base: Sequence[NodeFact], head: Sequence[NodeFact]) -> dict[str, str]:
    """Of nodes of `head`, the node of `base` that each is, by name; nodes without a counterpart are left out."""
    sides = [[node for node in nodes if node.operator not in _ADDED] for nodes in (base, head)]
    known = {_whole(node) for node in sides[0]} & {_whole(node) for node in sides[1]}
    keys = [[_whole(node) if _whole(node) in known else _alike(node) for node in nodes] for nodes in sides]
    found = {node.name: node.name for node in sides[1] if _whole(node) in known}
    # A whole key is unique, so where two of them are aligned they are the same node again.
    for ours, theirs in _aligned(*keys, *([bool(node.sizes) for node in nodes] for nodes in sides)):
        found.setdefault(sides[1][theirs].name, sides[0][ours].name)
    return found


def _aligned(
    base: Sequence[_Key], head: Sequence[_Key], base_products: Sequence[bool], head_products: Sequence[bool]
) -> Iterator[tuple[int, int]]:
    """Places in both of what is the same: products, and between each two of them the rest."""
    places = [[place for place, product in enumerate(each) if product] for each in (base_products, head_products)]
    pairs = _common([base[place] for place in places[0]], [head[place] for place in places[1]])
    anchors = [(places[0][ours], places[1][theirs]) for ours, theirs in pairs]
    yield from anchors
    for (a, b), (next_a, next_b) in itertools.pairwise([(-1, -1), *anchors, (len(base), len(head))]):
        matcher = SequenceMatcher(None, base[a + 1 : next_a], head[b + 1 : next_b], autojunk=False)
        for block in matcher.get_matching_blocks():
            yield from ((a + 1 + block.a + step, b + 1 + block.b + step) for step in range(block.size))


def _common(base: Sequence[_Key], head: Sequence[_Key]) -> list[tuple[int, int]]:
    """Places of the longest common subsequence, by dynamic programming; of several one in front."""
    best = [[0] * (len(head) + 1) for _ in range(len(base) + 1)]
    for a in reversed(range(len(base))):
        for b in reversed(range(len(head))):
            best[a][b] = best[a + 1][b + 1] + 1 if base[a] == head[b] else max(best[a + 1][b], best[a][b + 1])
    found: list[tuple[int, int]] = []
    a = b = 0
    while a < len(base) and b < len(head):
        if base[a] == head[b]:
            found.append((a, b))
            a, b = a + 1, b + 1
        elif best[a + 1][b] >= best[a][b + 1]:
            a += 1
        else:
            b += 1
    return found


def match_layers(base: Sequence[NodeFact], head: Sequence[NodeFact], nodes: Mapping[str, str]) -> dict[str, str]:
    """The same of layers, by the names that plans give them."""
    ours = {node.name: node.layer for node in base if node.layer}
    return {node.layer: ours[nodes[node.name]] for node in head if node.layer and nodes.get(node.name) in ours}


def _whole(node: NodeFact) -> _Key:
    return (node.name, *_alike(node), node.module)


def _alike(node: NodeFact) -> _Key:
    return (node.operator, *map(str, node.sizes))
