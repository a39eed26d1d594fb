"""What became of the kernels of an engine, group by group: see kernel_match.py for what is a group. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from gpusq_deploy.artifacts import Value
from gpusq_deploy.benchmarks.bundles.kernel_match import KernelGroup, match_kernels
from gpusq_deploy.benchmarks.bundles.sides import EngineSide, KernelFact, bytes_moved, predicted_us
from gpusq_deploy.engines import STUB
from gpusq_deploy.text import by_reason, counted, some

_GENERATED = "__myl_"
# Of a generated kernel's code.
_DIGEST = re.compile(r"_0x[0-9a-f]+$")
# Shares of bytes; below, padding and an index explain it.
_LEAST_BYTES = 0.01
# Of a line, less its end.
_WIDTH = 180


class KernelChange(Value):
    """Kernels of both engines that do the same work and differ; one side is empty where nothing does it there.

    Attributes:
        engine: The target.
        modules: Where the work comes from, as base names it; empty where no kernel names an ONNX node.
        what: How they differ, in words; the reason where one side has no such kernel.
        base: The kernels of base.
        head: Those of head.
    """

    engine: str
    modules: tuple[str, ...]
    what: tuple[str, ...]
    base: tuple[KernelFact, ...]
    head: tuple[KernelFact, ...]

    @property
    def place(self) -> str:
        """What to call it in a list."""
        return " + ".join(self.modules[:2]) or next((fact.name for fact in (*self.base, *self.head)), "")

    @property
    def attention_lost(self) -> int:
        """How many fused attentions fewer head has."""
        return _attentions(self.base) - _attentions(self.head)


def kernel_changes(
    engine: str, base: EngineSide, head: EngineSide, same: Mapping[str, str], *, sized: bool
) -> tuple[KernelChange, ...]:
    """Every group of kernels that differs: lost fusions first, then what has more kernels than before.

    Args:
        engine: The target.
        base: Its kernels in the one bundle.
        head: In the other.
        same: The node of base by that of head.
        sized: Whether bytes of both sides are of one batch size.
    """
    groups = match_kernels(base.kernels, head.kernels, (base.covers, head.covers), same)
    found = _changes(engine, groups, base, head, sized=sized)
    return tuple(sorted(found, key=lambda change: (-change.attention_lost, len(change.base) - len(change.head))))


def _changes(
    engine: str, groups: Sequence[KernelGroup], base: EngineSide, head: EngineSide, *, sized: bool
) -> Iterator[KernelChange]:
    for group in groups:
        ours = tuple(base.facts[place] for place in group.base)
        theirs = tuple(head.facts[place] for place in group.head)
        what = tuple(_alone(group, base, head) if not (ours and theirs) else _differences(ours, theirs, sized=sized))
        if what:
            side, places = (base, group.base) if group.base else (head, group.head)
            modules = tuple(dict.fromkeys(name for place in places if (name := side.module(place))))
            yield KernelChange(engine=engine, modules=modules, what=what, base=ours, head=theirs)


def _alone(group: KernelGroup, base: EngineSide, head: EngineSide) -> Iterator[str]:
    """Why a kernel has no counterpart."""
    side, place = (base, group.base[0]) if group.base else (head, group.head[0])
    here = "base" if group.base else "head"
    kernel = side.kernels[place]
    if not kernel.onnx_nodes:
        why = "names no ONNX operator"
    elif not side.covers[place]:
        why = "names no node of its model.onnx"
    else:
        why = "its operators have no counterpart"
    yield f"only in {here}: {why}"


def _differences(base: Sequence[KernelFact], head: Sequence[KernelFact], *, sized: bool) -> list[str]:
    products, others = ([fact for fact in side if fact.role != "other"] for side in (base, head))
    found = [
        *_fusion(base, head),
        *_types(base, head, products, others),
        *_moved("weights", [fact.sparse for fact in products], [fact.sparse for fact in others]),
        *_moved("kernel", [_named(fact) for fact in products], [_named(fact) for fact in others]),
    ]
    return found or (_bytes(base, head) if sized else [])


def _fusion(base: Sequence[KernelFact], head: Sequence[KernelFact]) -> Iterator[str]:
    lost = _attentions(base) - _attentions(head)
    if lost:
        yield "attention no longer fused" if lost > 0 else "attention is fused now"
    if len(base) != len(head):
        yield f"{counted(len(base), 'kernel')} -> {counted(len(head), 'kernel')}"
    elif len(base) > 1:
        yield f"{counted(len(base), 'kernel')} fused otherwise"


def _types(
    base: Sequence[KernelFact],
    head: Sequence[KernelFact],
    products: Sequence[KernelFact],
    others: Sequence[KernelFact],
) -> list[str]:
    """What products multiply in; where that is the same, what one kernel reads and writes beside one other."""
    found = [*_moved("multiplies in", [fact.precision for fact in products], [fact.precision for fact in others])]
    if found or not len(base) == len(head) == 1:
        return found
    names = ("reads", "writes")
    return [
        said
        for place, name in enumerate(names)
        for said in _moved(name, [base[0].types[place]], [head[0].types[place]])
    ]


def _bytes(base: Sequence[KernelFact], head: Sequence[KernelFact]) -> list[str]:
    before, after = bytes_moved(base), bytes_moved(head)
    if before is None or after is None or abs(after - before) <= _LEAST_BYTES * before:
        return []
    return ["moves more bytes" if after > before else "moves fewer bytes"]


def _moved(what: str, base: Sequence[str], head: Sequence[str]) -> Iterator[str]:
    """What differs, where both sides say something."""
    before, after = (", ".join(sorted(set(filter(None, side)))) for side in (base, head))
    if before and after and before != after:
        yield f"{what} {before} -> {after}"


def _named(fact: KernelFact) -> str:
    """A kernel's name where it is one: a stub is chosen later, and a generated one ends in a digest of its code."""
    return "" if fact.tactic == STUB or fact.tactic.startswith(_GENERATED) else _DIGEST.sub("", fact.tactic)


def _attentions(kernels: Sequence[KernelFact]) -> int:
    return sum(fact.role == "attention" for fact in kernels)


def kernel_lines(changes: Sequence[KernelChange], *, whole: bool = False) -> list[str]:
    """One line for each difference, that of several groups once; every group and its kernels where `whole`."""
    if whole:
        return [line for change in changes for line in _whole(change)]
    reasons = by_reason((str(place), "; ".join((change.engine, *change.what))) for place, change in enumerate(changes))
    return [_line([changes[int(place)] for place in places]) for places in reasons.values()]


def _line(changes: Sequence[KernelChange]) -> str:
    first = changes[0]
    base = [fact for change in changes for fact in change.base]
    head = [fact for change in changes for fact in change.head]
    said = f"kernel  engine {first.engine}: {', '.join(first.what)}{_costs(base, head)}"
    places = [change.place for change in changes]
    names = next(text for most in (3, 2, 1) if len(text := some(places, most)) + len(said) < _WIDTH or most == 1)
    return f"{said} in {counted(len(changes), 'place')} ({names})"


def _costs(base: Sequence[KernelFact], head: Sequence[KernelFact]) -> str:
    moved = [bytes_moved(side) for side in (base, head)]
    times = [predicted_us(side) for side in (base, head)]
    said: list[str] = []
    if moved[0] is not None and moved[1] is not None:
        said.append(f"{moved[0] / 1e6:.2f} -> {moved[1] / 1e6:.2f} MB")
    if times[0] is not None and times[1] is not None:
        said.append(f"predicted {times[0]:.1f} -> {times[1]:.1f} us")
    return f" ({', '.join(said)})" if said else ""


def _whole(change: KernelChange) -> Iterator[str]:
    costs = _costs(change.base, change.head)
    yield f"kernel  engine {change.engine}: {change.place}: {', '.join(change.what)}{costs}"
    for sign, facts in (("-", change.base), ("+", change.head)):
        for fact in facts:
            kind = " ".join(filter(None, (fact.role, fact.precision, fact.sparse)))
            yield f"        {sign} {fact.name} ({kind}: {some(fact.operators, 6) or 'no operator'})"
