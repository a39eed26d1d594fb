"""What changed from one bundle to another, without timing: layers, kernels, accuracy, size, options, preprocessing.

By default the rules of changes.py judge; a file of budgets (budgets.py) decides instead where one is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from gpusq_deploy.artifacts import ChangeBudgets, Check, Value
from gpusq_deploy.benchmarks.bundles.budgets import check_budgets
from gpusq_deploy.benchmarks.bundles.changes import Change, Judgement, changes, severity
from gpusq_deploy.benchmarks.bundles.kernel_changes import KernelChange, kernel_changes, kernel_lines
from gpusq_deploy.benchmarks.bundles.matched import Matched, matched
from gpusq_deploy.benchmarks.bundles.sides import EnginePair, engine_side
from gpusq_deploy.bundle import Bundle
from gpusq_deploy.text import counted

BundleVerdict = Literal["same", "changed", "worse", "within budget", "over budget", "not comparable"]

_EXIT_CODES: dict[BundleVerdict, int] = {
    "same": 0,
    "changed": 0,
    "worse": 1,
    "within budget": 0,
    "over budget": 1,
    "not comparable": 4,
}


class BundleComparison(Value):
    """All differences, the worse ones first.

    Attributes:
        verdict: By the rules of changes.py; where budgets were given, whether all of them hold.
        reasons: Why bundles aren't comparable; there are no changes then.
        changes: What differs, layer by layer and as counts.
        kernels: Which kernels differ, each group with both sides.
        checks: What the budgets allow and what was found; None where none were given.
        remarks: What couldn't be compared, and why.
    """

    schema: Literal["gpusq.bundle-comparison/1"] = "gpusq.bundle-comparison/1"
    verdict: BundleVerdict
    reasons: tuple[str, ...]
    changes: tuple[Change, ...]
    kernels: tuple[KernelChange, ...] = ()
    checks: tuple[Check, ...] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 same, changed or within budget, 1 worse or over budget, 4 not comparable."""
        return _EXIT_CODES[self.verdict]

    def text(self, *, whole: bool = False) -> str:
        """One line for each change or reason, and the verdict as the last; `whole` lists every kernel."""
        lines = [*self.reasons, *(change.text() for change in self.changes), *kernel_lines(self.kernels, whole=whole)]
        if self.changes or self.kernels:
            lines += self.remarks
        lines += map(check_line, self.checks or ())
        return "\n".join([*lines, self.verdict if self.checks is None else self.line()])

    def line(self) -> str:
        """The verdict, and what it rests on in few words."""
        if self.reasons:
            return f"{self.verdict}: {self.reasons[0]}"
        if self.checks is not None:
            return (
                f"{self.verdict}: {sum(check.held for check in self.checks)} of {counted(len(self.checks), 'budget')}"
            )
        counts = Counter(change.judgement for change in self.changes)
        said = ", ".join(f"{counts[judgement]} {judgement}" for judgement in get_args(Judgement))
        return f"{self.verdict}: {said}, {counted(len(self.kernels), 'group')} of kernels"


def check_line(check: Check) -> str:
    """One budget and what was found."""
    return f"{'ok    ' if check.held else 'FAILED'}  {check.engine}: {check.what} {check.expected}: {check.got}"


def compare_bundles(base: Bundle, head: Bundle, budgets: ChangeBudgets | None = None) -> BundleComparison:
    """What changed from `base` to `head`, and whether that is within budgets."""
    both = matched(base, head)
    if reasons := tuple(_obstacles(both)):
        return BundleComparison(verdict="not comparable", reasons=reasons, changes=())
    engines = tuple(_engine_pairs(both))
    found = tuple(sorted((*changes(both), *(change for pair in engines for change in _costs(pair))), key=severity))
    kernels = tuple(
        change
        for pair in engines
        if not any(graph.unknown for graph in both.graphs)
        for change in kernel_changes(pair.target, pair.base, pair.head, both.nodes, sized=pair.sized)
    )
    checks = None if budgets is None else check_budgets(budgets, both, engines, kernels)
    return BundleComparison(
        verdict=_verdict(found, kernels, checks),
        reasons=(),
        changes=found,
        kernels=kernels,
        checks=checks,
        remarks=tuple(_remarks(both, engines)),
    )


def _verdict(found: Sequence[Change], kernels: Sequence[KernelChange], checks: Sequence[Check] | None) -> BundleVerdict:
    if checks is not None:
        return "within budget" if all(check.held for check in checks) else "over budget"
    if any(change.judgement == "worse" for change in found):
        return "worse"
    return "changed" if found or kernels else "same"


def _engine_pairs(both: Matched) -> Iterator[EnginePair]:
    batches = [bundle.manifest.batch for bundle in (both.base, both.head)]
    sized, static = batches[0].optimum == batches[1].optimum, all(batch.static for batch in batches)
    for ours, theirs in both.engines:
        base, head = (
            engine_side(bundle, engine, graph)
            for bundle, engine, graph in zip((both.base, both.head), (ours, theirs), both.graphs, strict=True)
        )
        yield EnginePair(engines=(ours, theirs), base=base, head=head, sized=sized, static=static)


def _costs(pair: EnginePair) -> Iterator[Change]:
    """Bytes and predicted times of whole engines, where both are known at one batch size."""
    alone = "" if pair.static else " at the optimal batch alone"
    said = {
        f"bytes moved{alone}": [None if one is None else f"{one / 1e6:.2f} MB" for one in pair.bytes_moved],
        f"predicted time{alone}": [None if one is None else f"{one / 1e3:.3f} ms" for one in pair.predicted_us],
    }
    for what, (before, after) in said.items():
        if before is not None and after is not None and before != after:
            yield Change(judgement="other", engine=pair.target, what=what, base=before, head=after)


def _remarks(both: Matched, engines: Sequence[EnginePair]) -> Iterator[str]:
    for which, graph in zip(("base", "head"), both.graphs, strict=True):
        if graph.unknown:
            yield f"{which}: {graph.unknown}; layers are matched by name alone, and kernels aren't compared"
    for pair in engines:
        if not pair.sized:
            sizes = [bundle.manifest.batch.optimum for bundle in (both.base, both.head)]
            yield f"engine {pair.target}: bytes of batch {sizes[0]} and {sizes[1]} aren't compared"
        for side, name in ((pair.base, "base"), (pair.head, "head")):
            if side.unsized:
                yield f"engine {pair.target} of {name}: bytes of single kernels are unknown: {side.unsized}"


def _obstacles(both: Matched) -> Iterator[str]:
    base, head = both.base, both.head
    models = [bundle.manifest.source.arch for bundle in (base, head)]
    layers = [len(bundle.plan.layers) for bundle in (base, head)]
    if models[0] != models[1] and 2 * len(both.layers) < max(layers):
        alike = f"{len(both.layers)} layers alike of {layers[0]} and {layers[1]}"
        yield f"architecture: {models[0]} in base, {models[1]} in head, {alike}"
    targets = [sorted(engine.target for engine in bundle.receipt.engines) for bundle in (base, head)]
    if all(targets) and not set(targets[0]) & set(targets[1]):
        yield f"no shared target: {', '.join(targets[0])} in base, {', '.join(targets[1])} in head"
