"""Verdicts as JUnit's XML, which GitLab, Jenkins and others show beside the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple
from xml.etree import ElementTree

Outcome = Literal["passed", "failed", "skipped", "error"]
_ELEMENTS: dict[Outcome, str] = {"failed": "failure", "skipped": "skipped", "error": "error"}


class JunitCase(NamedTuple):
    """One test case: of what it is, its name, how it ended, and the reason; its first line is the message."""

    of: str
    name: str
    outcome: Outcome
    text: str


class JunitSuite(NamedTuple):
    """Test cases under the name of the command that made them, and the seconds that they took, where known."""

    name: str
    cases: Sequence[JunitCase]
    seconds: float = 0.0


def junit_xml(suites: Sequence[JunitSuite]) -> bytes:
    """The whole document: UTF-8, with a final newline."""
    tree = ElementTree.Element("testsuites")
    for suite in suites:
        outcomes = [case.outcome for case in suite.cases]
        element = ElementTree.SubElement(
            tree,
            "testsuite",
            name=suite.name,
            tests=str(len(outcomes)),
            failures=str(outcomes.count("failed")),
            errors=str(outcomes.count("error")),
            skipped=str(outcomes.count("skipped")),
            time=f"{suite.seconds:.3f}",
        )
        for case in suite.cases:
            _add(element, case)
    data: bytes = ElementTree.tostring(tree, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _add(suite: ElementTree.Element, case: JunitCase) -> None:
    text = _clean(case.text)
    element = ElementTree.SubElement(suite, "testcase", classname=_line(case.of), name=_line(case.name), time="0")
    if case.outcome in _ELEMENTS:
        ElementTree.SubElement(element, _ELEMENTS[case.outcome], message=text.split("\n", 1)[0]).text = text
    ElementTree.SubElement(element, "system-out").text = text


def _line(text: str) -> str:
    return _clean(text).replace("\n", " ")


def _clean(text: str) -> str:
    """Without the control characters that XML 1.0 has no form for."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
