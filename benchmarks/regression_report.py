"""A comparison of files of runs as text, as Markdown for a job's summary, and as JUnit's XML."""

from __future__ import annotations

from gpusq_deploy.benchmarks.gate_report import models_line
from gpusq_deploy.benchmarks.junit import JunitCase, JunitSuite, Outcome, junit_xml
from gpusq_deploy.benchmarks.markdown import table
from gpusq_deploy.benchmarks.regression import BatchComparison, Comparison, Comparisons, NamedComparison, Verdict
from gpusq_deploy.benchmarks.report import block, columns

COMPARISON_HEADINGS = ("batch", "base ms", "head ms", "change", "95 % interval", "p slower", "verdict")
_OUTCOMES: dict[Verdict, Outcome] = {
    "holds": "passed",
    "steady": "passed",
    "regressed": "failed",
    "inconclusive": "skipped",
    "not steady": "skipped",
    "not comparable": "skipped",
}


def text_from_comparison(comparison: Comparison | Comparisons) -> str:
    """One row per batch size with its reason, every remark, and the verdict as the last line, without a newline."""
    if isinstance(comparison, Comparison):
        return _text(comparison)
    parts = [f"{entry.name}\n\n{_text(entry.comparison)}" for entry in comparison.models]
    return "\n\n".join([*parts, comparison_line(comparison)])


def comparison_line(comparison: Comparison | Comparisons) -> str:
    """The verdict in one line."""
    budget = _budget(comparison)
    if isinstance(comparison, Comparison):
        changes = ", ".join(f"{entry.ratio - 1:+.1%} at batch {entry.batch}" for entry in comparison.batches)
        return f"{comparison.verdict}{': ' if changes else ''}{changes} {budget}"
    models = [(entry.comparison.verdict, entry.name) for entry in comparison.models]
    return f"{models_line(comparison.verdict, models)} {budget}"


def markdown_from_comparison(comparison: Comparisons) -> str:
    """For a job's summary: the verdict, and of each model the table and the reasons."""
    several = len(comparison.models) > 1
    heading = [f"## Latency: {comparison_line(comparison)}", ""] if several else []
    return "\n".join([*heading, *(line for entry in comparison.models for line in _markdown(entry))])


def junit_from_comparison(comparison: Comparisons) -> bytes:
    """A test case for each batch size: regressed is a failure; what isn't decided or comparable is skipped. UTF-8."""
    return junit_xml([JunitSuite("gpusq-compare", [case for entry in comparison.models for case in _cases(entry)])])


def comparison_row(entry: BatchComparison) -> tuple[str, ...]:
    """One batch size under `COMPARISON_HEADINGS`."""
    known = entry.lower is not None and entry.upper is not None
    return (
        str(entry.batch),
        f"{entry.base_ms:.3f}",
        f"{entry.head_ms:.3f}",
        f"{entry.ratio - 1:+.2%}",
        f"{(entry.lower or 0) - 1:+.2%} to {(entry.upper or 0) - 1:+.2%}" if known else "-",
        "-" if entry.p_slower is None else f"{entry.p_slower:.2g}",
        entry.verdict,
    )


def _text(comparison: Comparison) -> str:
    lines: list[str] = []
    if comparison.batches:
        lines += columns(COMPARISON_HEADINGS, [comparison_row(entry) for entry in comparison.batches])
    lines += block([f"batch {entry.batch}: {entry.reason}" for entry in comparison.batches])
    lines += block([f"batch {entry.batch}: {said}" for entry in comparison.batches for said in entry.warnings])
    lines += block(comparison.remarks)
    lines += block(comparison.reasons)
    return "\n".join([*lines, "", f"{comparison.verdict} {_budget(comparison)}"]).lstrip("\n")


def _budget(comparison: Comparison | Comparisons) -> str:
    sides = "+/-" if comparison.verdict in {"steady", "not steady"} else "+"
    return f"(budget {sides}{comparison.max_regression:.2%})"


def _markdown(entry: NamedComparison) -> list[str]:
    comparison = entry.comparison
    rows = [comparison_row(batch) for batch in comparison.batches]
    said = [f"batch {batch.batch}: {text}" for batch in comparison.batches for text in (batch.reason, *batch.warnings)]
    said += [*comparison.remarks, *comparison.reasons]
    return [
        f"### {entry.name.replace('`', chr(39))}: {comparison_line(comparison)}",
        "",
        *(table(COMPARISON_HEADINGS, rows, numbers=True) if rows else []),
        *(["", *(f"- {line}" for line in said)] if said else []),
        "",
    ]


def _cases(entry: NamedComparison) -> list[JunitCase]:
    comparison = entry.comparison
    if not comparison.batches:
        return [JunitCase(entry.name, "latency", _OUTCOMES[comparison.verdict], "; ".join(comparison.reasons))]
    return [
        JunitCase(entry.name, f"latency at batch {batch.batch}", _OUTCOMES[batch.verdict], batch.reason)
        for batch in comparison.batches
    ]
