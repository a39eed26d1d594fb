"""A comparison of bundles as Markdown for a job's summary, and as JUnit's XML."""

from __future__ import annotations

from gpusq_deploy.artifacts import Check
from gpusq_deploy.benchmarks.bundles.changes import Change
from gpusq_deploy.benchmarks.bundles.comparison import BundleComparison
from gpusq_deploy.benchmarks.bundles.kernel_changes import kernel_lines
from gpusq_deploy.benchmarks.junit import JunitCase, JunitSuite, junit_xml
from gpusq_deploy.benchmarks.markdown import code, table, word_for_word

_UNTIMED = "Nothing was timed; predicted times are predictions."


def markdown_from_bundles(comparison: BundleComparison, *, base: str, head: str) -> str:
    """For a job's summary: the verdict, the budgets, and what changed.

    Args:
        comparison: Of two bundles.
        base: What the one is called.
        head: What the other is.
    """
    lines = [f"### Bundles: {comparison.line()}", "", f"{code(base)} to {code(head)}. {_UNTIMED}", ""]
    lines += [f"- {word_for_word(reason)}" for reason in comparison.reasons]
    if comparison.checks:
        lines += [*table(("budget", "allowed", "found", ""), [_check_row(check) for check in comparison.checks]), ""]
    if comparison.changes:
        rows = [_row(each) for each in comparison.changes]
        lines += [*table(("", "engine", "what", "base", "head", "layers"), rows), ""]
    if comparison.kernels:
        said = (line.removeprefix("kernel").strip() for line in kernel_lines(comparison.kernels))
        lines += [*(f"- {word_for_word(line)}" for line in said), ""]
    lines += [f"- {word_for_word(remark)}" for remark in comparison.remarks]
    return "\n".join(lines).rstrip() + "\n\n"


def junit_from_bundles(comparison: BundleComparison, *, head: str) -> bytes:
    """One test case for each budget, or without budgets one for the verdict; UTF-8.

    A budget that doesn't hold and a worse bundle are failures; bundles that aren't comparable are an error.
    """
    return junit_xml([JunitSuite("gpusq-compare", _cases(comparison, head))])


def _cases(comparison: BundleComparison, head: str) -> list[JunitCase]:
    if comparison.reasons:
        return [JunitCase(head, "comparable", "error", "\n".join(comparison.reasons))]
    if comparison.checks is None:
        worse = [change.text() for change in comparison.changes if change.judgement == "worse"]
        text = "\n".join(worse) or comparison.line()
        return [JunitCase(head, "nothing is worse", "failed" if worse else "passed", text)]
    return [
        JunitCase(
            of=head,
            name=f"{check.engine}: {check.what}",
            outcome="passed" if check.held else "failed",
            text=f"{check.engine}: {check.what} {check.expected}, got {check.got}",
        )
        for check in comparison.checks
    ]


def _check_row(check: Check) -> tuple[str, ...]:
    cells = (f"{check.engine}: {check.what}", check.expected, check.got, "ok" if check.held else "FAILED")
    return tuple(word_for_word(cell) for cell in cells)


def _row(change: Change) -> tuple[str, ...]:
    shown = (change.shown(change.base), change.shown(change.head))
    return tuple(word_for_word(cell) for cell in (change.judgement, change.engine, change.what, *shown, change.where))
