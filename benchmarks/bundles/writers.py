"""A comparison of bundles as Markdown for a job's summary, and as JUnit's XML."""

from __future__ import annotations

from xml.etree import ElementTree

from gpusq_deploy.artifacts import Check
from gpusq_deploy.benchmarks.bundles.changes import Change
from gpusq_deploy.benchmarks.bundles.comparison import BundleComparison
from gpusq_deploy.benchmarks.bundles.kernel_changes import kernel_lines

_UNTIMED = "Nothing was timed; predicted times are predictions."


def markdown_from_bundles(comparison: BundleComparison, *, base: str, head: str) -> str:
    """For a job's summary: the verdict, the budgets, and what changed.

    Args:
        comparison: Of two bundles.
        base: What the one is called.
        head: What the other is.
    """
    lines = [f"### Bundles: {comparison.line()}", "", f"`{_code(base)}` to `{_code(head)}`. {_UNTIMED}", ""]
    lines += [f"- {_text(reason)}" for reason in comparison.reasons]
    if comparison.checks:
        lines += _table(("budget", "allowed", "found", ""), [_check_row(check) for check in comparison.checks])
    if comparison.changes:
        lines += _table(("", "engine", "what", "base", "head", "layers"), [_row(each) for each in comparison.changes])
    if comparison.kernels:
        said = (line.removeprefix("kernel").strip() for line in kernel_lines(comparison.kernels))
        lines += [*(f"- {_text(line)}" for line in said), ""]
    lines += [f"- {_text(remark)}" for remark in comparison.remarks]
    return "\n".join(lines).rstrip() + "\n\n"


def junit_from_bundles(comparison: BundleComparison, *, head: str) -> bytes:
    """One test case for each budget, or without budgets one for the verdict; UTF-8.

    A budget that doesn't hold and a worse bundle are failures; bundles that aren't comparable are an error.
    """
    cases = _cases(comparison)
    outcomes = [outcome for _, outcome, _ in cases]
    suite = ElementTree.Element(
        "testsuite",
        name="gpusq-compare",
        tests=str(len(cases)),
        failures=str(outcomes.count("failure")),
        errors=str(outcomes.count("error")),
        skipped="0",
        time="0",
    )
    for name, outcome, text in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(head), name=_clean(name), time="0")
        if outcome:
            ElementTree.SubElement(case, outcome, message=_clean(text.split("\n", 1)[0])).text = _clean(text)
        ElementTree.SubElement(case, "system-out").text = _clean(text)
    tree = ElementTree.Element("testsuites")
    tree.append(suite)
    data: bytes = ElementTree.tostring(tree, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _cases(comparison: BundleComparison) -> list[tuple[str, str, str]]:
    """Name, outcome (empty where it passed) and text of each."""
    if comparison.reasons:
        return [("comparable", "error", "\n".join(comparison.reasons))]
    if comparison.checks is None:
        worse = [change.text() for change in comparison.changes if change.judgement == "worse"]
        return [("nothing is worse", "failure" if worse else "", "\n".join(worse) or comparison.line())]
    return [
        (
            f"{check.engine}: {check.what}",
            "" if check.held else "failure",
            f"{check.engine}: {check.what} {check.expected}, got {check.got}",
        )
        for check in comparison.checks
    ]


def _check_row(check: Check) -> tuple[str, ...]:
    return (f"{check.engine}: {check.what}", check.expected, check.got, "ok" if check.held else "FAILED")


def _row(change: Change) -> tuple[str, ...]:
    return (
        change.judgement,
        change.engine,
        change.what,
        change.shown(change.base),
        change.shown(change.head),
        change.where,
    )


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    both = [headings, ("---",) * len(headings), *rows]
    return [*("| " + " | ".join(_text(cell) for cell in row) + " |" for row in both), ""]


def _text(text: str) -> str:
    """As Markdown shows it word for word: names have bars and underscores in them."""
    return "".join(f"\\{letter}" if letter in r"\|_*<>`[]" else letter for letter in text.replace("\n", " "))


def _code(text: str) -> str:
    return text.replace("`", "'").replace("\n", " ")


def _clean(text: str) -> str:
    """Without the control characters that XML 1.0 has no form for."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
