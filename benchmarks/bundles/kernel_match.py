"""Which kernels of one engine do what which kernels of another do, though fusions differ. Pure.

A kernel covers the ONNX nodes that its builder names. A product is covered by the GEMM or the fused attention alone:
the kernel that adds its bias names it too. Each kernel is tied to the one on the other side with which it shares most
nodes, and kernels that hang together so are one group: 1 -> 3 where a fusion was broken, 2 -> 1 where one was made.
What is left is tied in the same way by the products that it names: it casts or scales for one of them.

Kernels that name no node (moves, shapes) are matched by what they are called, in the order of both engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import SequenceMatcher

from gpusq_deploy.artifacts import EngineLayer
from gpusq_deploy.engines import classify, plain_name
from gpusq_deploy.graph import NodeFact

_PRODUCTS = frozenset({"MatMul", "Conv"})


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelGroup:
    """Kernels of both sides that do the same work, as places in their lists; one side may be empty."""

    base: tuple[int, ...]
    head: tuple[int, ...]


def covered(kernels: Sequence[EngineLayer], nodes: Mapping[str, NodeFact]) -> list[frozenset[str]]:
    """The nodes that each kernel covers, by name."""
    products = {name for name, node in nodes.items() if node.operator in _PRODUCTS}
    carries = [classify(kernel).role in {"gemm", "attention"} for kernel in kernels]
    held = {name for kernel, carrier in zip(kernels, carries, strict=True) if carrier for name in kernel.onnx_nodes}
    return [
        frozenset(name for name in kernel.onnx_nodes if name in nodes and (carrier or name not in products & held))
        for kernel, carrier in zip(kernels, carries, strict=True)
    ]


def match_kernels(
    base: Sequence[EngineLayer],
    head: Sequence[EngineLayer],
    covers: tuple[Sequence[Set[str]], Sequence[Set[str]]],
    same: Mapping[str, str],
) -> tuple[KernelGroup, ...]:
    """Groups in base's order, what only head has last.

    Args:
        base: Kernels of the one engine.
        head: Of the other.
        covers: The nodes that each kernel of base and of head covers, see `covered`.
        same: The node of base by that of head, see `match_nodes`.
    """
    theirs = [frozenset(same[name] for name in nodes if name in same) for nodes in covers[1]]
    groups = _joined(_with_left_over(base, head, set(_both_ways(covers[0], theirs)), same))
    plain = _without_nodes(base, head, groups)
    ours = {place for group in (*groups, *plain) for place in group.base}
    others = {place for group in (*groups, *plain) for place in group.head}
    alone = [
        *(KernelGroup(base=(place,), head=()) for place in range(len(base)) if place not in ours),
        *(KernelGroup(base=(), head=(place,)) for place in range(len(head)) if place not in others),
    ]
    last = (len(base),)
    return tuple(sorted((*groups, *plain, *alone), key=lambda group: (group.base or last, group.head)))


def _both_ways(base: Sequence[Set[str]], head: Sequence[Set[str]]) -> Iterator[tuple[int, int]]:
    yield from _ties(base, head)
    yield from ((ours, place) for place, ours in _ties(head, base))


def _with_left_over(
    base: Sequence[EngineLayer], head: Sequence[EngineLayer], ties: set[tuple[int, int]], same: Mapping[str, str]
) -> set[tuple[int, int]]:
    """Also ties of kernels that had none, by all that they name: first with such on the other side, then with any."""
    ours = [frozenset(kernel.onnx_nodes) for kernel in base]
    theirs = [frozenset(same[name] for name in kernel.onnx_nodes if name in same) for kernel in head]
    found = ties | set(_both_ways(_left(ours, {tie[0] for tie in ties}), _left(theirs, {tie[1] for tie in ties})))
    tied = [{tie[side] for tie in found} for side in (0, 1)]
    backwards = ((place, other) for other, place in _ties(_left(theirs, tied[1]), ours))
    return found | set(_ties(_left(ours, tied[0]), theirs)) | set(backwards)


def _left(nodes: Sequence[Set[str]], tied: Set[int]) -> list[Set[str]]:
    """The nodes of kernels that have no tie, none of the others."""
    return [frozenset[str]() if place in tied else each for place, each in enumerate(nodes)]


def _ties(ones: Sequence[Set[str]], others: Sequence[Set[str]]) -> Iterator[tuple[int, int]]:
    """Each of `ones` with the one of `others` that shares most nodes, where any does; the first of equals."""
    holders: dict[str, list[int]] = {}
    for place, nodes in enumerate(others):
        for name in nodes:
            holders.setdefault(name, []).append(place)
    for place, nodes in enumerate(ones):
        shared = Counter(holder for name in nodes for holder in holders.get(name, ()))
        if shared:
            yield place, min(shared, key=lambda holder: (-shared[holder], holder))


def _joined(ties: Set[tuple[int, int]]) -> list[KernelGroup]:
    """What hangs together by ties."""
    group_of: dict[tuple[str, int], set[tuple[str, int]]] = {}
    for ours, theirs in sorted(ties):
        ends = (("base", ours), ("head", theirs))
        whole = set(ends).union(*(group_of.get(end, set[tuple[str, int]]()) for end in ends))
        group_of.update(dict.fromkeys(whole, whole))
    unique = {id(group): group for group in group_of.values()}
    return [
        KernelGroup(
            base=tuple(sorted(place for side, place in group if side == "base")),
            head=tuple(sorted(place for side, place in group if side == "head")),
        )
        for group in unique.values()
    ]


def _without_nodes(
    base: Sequence[EngineLayer], head: Sequence[EngineLayer], groups: Sequence[KernelGroup]
) -> list[KernelGroup]:
    """Pairs of kernels that name no node, in step with those that were matched."""
    keys = [
        _keys(base, [group.base for group in groups]),
        _keys(head, [group.head for group in groups]),
    ]
    blocks = SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_matching_blocks()
    pairs = ((block.a + step, block.b + step) for block in blocks for step in range(block.size))
    return [
        KernelGroup(base=(ours,), head=(theirs,))
        for ours, theirs in pairs
        if not base[ours].onnx_nodes and not head[theirs].onnx_nodes
    ]


def _keys(kernels: Sequence[EngineLayer], groups: Sequence[tuple[int, ...]]) -> list[str]:
    """A name for each kernel that both sides share: its group's number, else what it is called."""
    numbers = {place: str(number) for number, places in enumerate(groups) for place in places}
    return [numbers.get(place) or f"{kernel.kind} {plain_name(kernel)}" for place, kernel in enumerate(kernels)]
