"""A comparison as a page for a browser: of two files of runs, or of two bundles."""

from __future__ import annotations

from typing import Any

from gpusq_deploy.artifacts import Runs, builtins_from_value
from gpusq_deploy.benchmarks.bundles.changes import Change
from gpusq_deploy.benchmarks.bundles.comparison import BundleComparison, BundleVerdict, check_line
from gpusq_deploy.benchmarks.bundles.kernel_changes import KernelChange
from gpusq_deploy.benchmarks.latency_html import latency_parts
from gpusq_deploy.benchmarks.regression import Comparison, Verdict
from gpusq_deploy.benchmarks.regression_report import COMPARISON_HEADINGS, comparison_row
from gpusq_deploy.bundle import Bundle, Standing, render_page, verdict_cards

_STANDINGS: dict[Verdict | BundleVerdict, Standing] = {
    "holds": "good",
    "steady": "good",
    "same": "good",
    "changed": "open",
    "inconclusive": "open",
    "not steady": "open",
    "not comparable": "open",
    "regressed": "bad",
    "worse": "bad",
    "within budget": "good",
    "over budget": "bad",
}


def comparison_page(comparison: Comparison, base: Runs, head: Runs) -> str:
    """The verdict, one row per batch size, and the distributions of both."""
    said = [(f"batch {entry.batch}", (entry.reason, *entry.warnings)) for entry in comparison.batches]
    remarks = (f"{where}: {text}" for where, texts in said for text in texts)
    return _page(
        title="base and head: is head slower?",
        verdict=(_STANDINGS[comparison.verdict], _sentence(comparison.verdict, comparison.max_regression)),
        caption="Each batch size",
        headings=COMPARISON_HEADINGS,
        rows=[comparison_row(entry) for entry in comparison.batches],
        remarks=(*comparison.reasons, *remarks, *comparison.remarks),
        latency=[(name, *latency_parts([runs])) for name, runs in (("base", base), ("head", head))],
        data=builtins_from_value(comparison),
    )


def bundle_comparison_page(comparison: BundleComparison, base: Bundle, head: Bundle) -> str:
    """The verdict, every change with the worse ones first, and what each of the two proves."""
    sides = [(name, bundle.plan.recipe, verdict_cards(bundle)) for name, bundle in (("base", base), ("head", head))]
    return _page(
        title=f"{base.manifest.source.file} and {head.manifest.source.file}: what changed",
        verdict=(_STANDINGS[comparison.verdict], f"{_verdict(comparison)}; nothing was timed"),
        caption="Every difference, the worse ones first",
        headings=("", "engine", "what", "base", "head", "layers"),
        rows=[*map(_change_row, comparison.changes), *map(_kernel_row, comparison.kernels)],
        remarks=(*comparison.reasons, *map(check_line, comparison.checks or ()), *comparison.remarks),
        sides=sides,
        data=builtins_from_value(comparison),
    )


def _page(*, sides: Any = (), latency: Any = (), **values: Any) -> str:
    return render_page("comparison.html.j2", sides=sides, latency=latency, **values)


def _sentence(verdict: Verdict, max_regression: float) -> str:
    sides = "±" if verdict in {"steady", "not steady"} else "+"
    return f"{verdict}: budget {sides}{max_regression:.2%}"


def _change_row(change: Change) -> tuple[str | tuple[str, ...], ...]:
    return (change.judgement, change.engine, change.what, change.base, change.head, change.layers)


def _kernel_row(change: KernelChange) -> tuple[str | tuple[str, ...], ...]:
    base, head = (tuple(fact.name for fact in side) for side in (change.base, change.head))
    return ("kernel", change.engine, ", ".join(change.what), base, head, change.modules)


def _verdict(comparison: BundleComparison) -> str:
    return comparison.verdict if comparison.checks is None else comparison.line()
