"""Which ONNX node of one model is which of another, though exporters name nodes and modules as they like. Pure.

1. Nodes of one name, operator, module and size are the same node.
2. Of the rest, those of one module, operator and size are, in their order, where both have as many of them.
3. Of the rest, layers' products are aligned in the graphs' order by operator and sizes [N, K]: the longest common
   subsequence, for equal blocks would let a greedy match slip by one.
4. What stands between two such pairs is aligned by operator (`difflib.SequenceMatcher`, the longest equal run first).
Nodes of the first two rules keep both alignments in step.

What a quantiser or a cast adds is no part of the model and isn't matched.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from difflib import SequenceMatcher

from gpusq_deploy.graph import NodeFact

_Key = tuple[str, ...]
_Keys = tuple[list[_Key], list[_Key]]

_ADDED = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})


def match_nodes(base: Sequence[NodeFact], head: Sequence[NodeFact]) -> dict[str, str]:
    """Of nodes of `head`, the node of `base` that each is, by name; nodes without a counterpart are left out."""
    ours, theirs = (_unadded(nodes) for nodes in (base, head))
    keys = _by_module(ours, theirs, (list(map(_whole, ours)), list(map(_whole, theirs))))
    known = set(keys[0]) & set(keys[1])
    by_key = {key: node.name for node, key in zip(ours, keys[0], strict=True)}
    found = {node.name: by_key[key] for node, key in zip(theirs, keys[1], strict=True) if key in known}
    # Such a key is unique, so where two of them are aligned they are the same node again.
    for place, other in _aligned((ours, theirs), (_alike(ours, keys[0], known), _alike(theirs, keys[1], known))):
        found.setdefault(theirs[other].name, ours[place].name)
    return found


def _unadded(nodes: Sequence[NodeFact]) -> list[NodeFact]:
    return [node for node in nodes if node.operator not in _ADDED]


def _by_module(base: Sequence[NodeFact], head: Sequence[NodeFact], keys: _Keys) -> _Keys:
    """The keys, but of nodes that aren't known by theirs the place in the module, where both have as many there."""
    known = set(keys[0]) & set(keys[1])
    left = tuple([key not in known for key in each] for each in keys)
    counts = [
        Counter(itertools.compress(map(_place, nodes), each)) for nodes, each in zip((base, head), left, strict=True)
    ]
    settled = {place for place, count in counts[0].items() if counts[1][place] == count}
    return (_in_module(base, keys[0], left[0], settled), _in_module(head, keys[1], left[1], settled))


def _whole(node: NodeFact) -> _Key:
    return ("node", node.name, *_kind(node), node.module)


def _place(node: NodeFact) -> _Key:
    return ("module", node.module, *_kind(node))


def _in_module(nodes: Sequence[NodeFact], keys: Sequence[_Key], left: Sequence[bool], settled: Set[_Key]) -> list[_Key]:
    """Of nodes that are left, the module, the kind, and which of that kind, where both sides have as many of these."""
    seen: Counter[_Key] = Counter()
    found: list[_Key] = []
    for node, key, open_ in zip(nodes, keys, left, strict=True):
        place = _place(node)
        if not (open_ and node.module and place in settled):
            found.append(key)
            continue
        found.append((*place, str(seen[place])))
        seen[place] += 1
    return found


def _alike(nodes: Sequence[NodeFact], keys: Sequence[_Key], known: Set[_Key]) -> list[_Key]:
    """Of nodes that aren't known, the kind."""
    return [key if key in known else _kind(node) for node, key in zip(nodes, keys, strict=True)]


def _kind(node: NodeFact) -> _Key:
    return (node.operator, *map(str, node.sizes))


def _aligned(nodes: tuple[Sequence[NodeFact], Sequence[NodeFact]], keys: _Keys) -> Iterator[tuple[int, int]]:
    """Places in both of what is the same: products, and between each two of them the rest."""
    base, head = keys
    places = [[place for place, node in enumerate(each) if node.sizes] for each in nodes]
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
