"""What a user of the main job reads: every line at most two of a terminal, nothing said twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from commands import Finished, run_main

from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.bundle.report.terminal import print_bundle
from gpusq_deploy.cli.inspect import main as inspect

pytestmark = pytest.mark.slow

# Two lines of 100 columns.
LONGEST = 200


def too_long(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > LONGEST]


def said_twice(text: str) -> list[str]:
    return [line for line, count in Counter(text.splitlines()).items() if count > 1 and line]


def test_progress_is_short_and_says_nothing_twice(built: tuple[Path, Finished]) -> None:
    _, done = built
    assert done.code == 0, done.err
    assert (too_long(done.err), said_twice(done.err)) == ([], [])


def test_the_result_is_short_and_the_notes_on_its_making_are_inspects(
    built: tuple[Path, Finished], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = read_bundle(built[0])
    print_bundle(bundle)
    shown = capsys.readouterr().out
    assert (too_long(shown), said_twice(shown)) == ([], [])
    assert shown.count("held-out samples") == 1
    inspected = run_main(inspect, built[0]).out.splitlines()
    assert [line for line in inspected if line.startswith("note: ")] == [f"note: {note}" for note in bundle.plan.notes]
    assert not any(note in shown for note in bundle.plan.notes if note.startswith("graph rewrite"))
    assert too_long("\n".join(inspected)) == []
