"""The GPU suite's processes: what one leaves behind, and what the suite makes of its death. No GPU, no TensorRT."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpusq_deploy.benchmarks.gpu import own_tests, possible, suite, worker
from gpusq_deploy.benchmarks.gpu.possible import way_named, ways_among
from gpusq_deploy.benchmarks.gpu.runs import TIME_IS_UP, Ground
from gpusq_deploy.benchmarks.gpu.values import Finding, Way, Ways
from gpusq_deploy.benchmarks.gpu.worker import Step, add_line, read_lines, work
from gpusq_deploy.errors import GpusqError


def ground(folder: Path, seconds: float = 60.0) -> Ground:
    return Ground(folder, folder, time.monotonic() + seconds)


def pretend(monkeypatch: pytest.MonkeyPatch, failures: dict[str, Exception]) -> None:
    def run(item: str, _ground: Ground) -> Iterator[Finding]:
        yield Finding(step="torch", name=item, facts={"half": "way"})
        if item in failures:
            raise failures[item]

    def items(_ground: Ground) -> tuple[str, ...]:
        return "a", "b", "c"

    monkeypatch.setitem(worker.BY_NAME, "torch", Step(items, run))


def test_one_failure_is_a_line_and_not_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"a": GpusqError("out of memory"), "b": KeyError("x")})
    out = tmp_path / "out.jsonl"
    assert not work("torch", ground(tmp_path), out)
    begun, findings = read_lines(out)
    assert begun == ["a", "b", "c"]
    assert [(one.name, one.why_not) for one in findings] == [
        ("a", ""),
        ("a", "failed: out of memory"),
        ("b", ""),
        ("b", "failed: KeyError: 'x'"),
        ("c", ""),
    ]


def test_after_a_sticky_error_another_process_does_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"b": RuntimeError("CUDA error: an illegal memory access was encountered")})
    out = tmp_path / "out.jsonl"
    assert work("torch", ground(tmp_path), out)
    assert read_lines(out)[0] == ["a", "b"]
    assert not work("torch", ground(tmp_path), out)
    assert read_lines(out)[0] == ["a", "b", "c"]


def test_what_there_is_no_time_for_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {})
    work("torch", ground(tmp_path, -1.0), tmp_path / "out.jsonl")
    assert [one.why_not for one in read_lines(tmp_path / "out.jsonl")[1]] == [TIME_IS_UP] * 3


def test_a_line_that_was_cut_off_loses_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    add_line(out, "a", Finding(step="torch", name="a", facts={"error": 0.5}))
    whole = out.read_bytes()
    out.write_bytes(whole + whole[:-20])
    begun, findings = read_lines(out)
    assert (begun, len(findings)) == (["a", "a"], 1)
    assert findings[0].number("error") == 0.5


def test_a_process_that_dies_costs_what_it_was_at_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second thing ends its process by a signal; another one does the third."""
    pretend(monkeypatch, {})
    starts: list[int] = []

    def die(_name: str, _ground: Ground, out: Path) -> int:
        starts.append(len(read_lines(out)[0]))
        for item in ("a", "b", "c")[starts[-1] :]:
            add_line(out, item)
            if item == "b":
                return -signal.SIGSEGV
            add_line(out, None, Finding(step="torch", name=item))
        return 0

    monkeypatch.setattr(suite, "_worker", die)
    suite.run_step("torch", ground(tmp_path), tmp_path / "out.jsonl")
    found = {one.name: one.why_not for one in read_lines(tmp_path / "out.jsonl")[1]}
    assert found == {"a": "", "b": "its process died: SIGSEGV", "c": ""}
    assert starts == [0, 2]


def test_a_process_that_begins_nothing_isnt_started_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {})

    def refuse(_name: str, _ground: Ground, _out: Path) -> int:
        return 1

    monkeypatch.setattr(suite, "_worker", refuse)
    suite.run_step("torch", ground(tmp_path), tmp_path / "out.jsonl")
    reasons = [one.why_not for one in read_lines(tmp_path / "out.jsonl")[1]]
    assert reasons == ["its process died: status 1", *["not begun: its process died: status 1"] * 3]


def test_the_gpus_own_kernels_are_the_best_way_then_the_builders_choice() -> None:
    def ran(name: str) -> Finding:
        return Finding(step="possible", name=name, samples_ms=(1.0,))

    wrong = Finding(step="possible", name="build here, tensorrt-rtx CURRENT", why_not="not timed, for it is wrong")
    sm80 = ran("plan from elsewhere, tensorrt-rtx SM80")
    unnamed = ran("build here, tensorrt-rtx none named")
    full = ran("build here, tensorrt")
    rtx = Way(backend="tensorrt-rtx", capability="")
    assert ways_among([wrong, sm80]).ways == (Way(backend="tensorrt-rtx", capability="SM80"),)
    assert ways_among([sm80, unnamed, full]).ways == (rtx, Way(backend="tensorrt"))
    assert ways_among([wrong]) == Ways(why_not="no plan runs here: not timed, for it is wrong")


def test_every_way_is_asked_under_a_name_that_says_it(tmp_path: Path) -> None:
    asked = [item.partition(", ")[2] for item in possible.items(ground(tmp_path)) if ", " in item]
    assert [way_named(name).name for name in asked] == asked
    assert {way_named(name).capability for name in asked} >= {"CURRENT", "", "SM80", "SM89", "SM120", None}


def test_pytests_own_record_is_a_finding_a_test(tmp_path: Path) -> None:
    record = tmp_path / "tests.xml"
    record.write_text(
        '<testsuites><testsuite><testcase name="one" time="0.5"/>'
        '<testcase name="two" time="0.1"><skipped message="no GPU"/></testcase>'
        '<testcase name="three" time="0.1"><failure message="assert 1 == 2">long</failure></testcase>'
        "</testsuite></testsuites>"
    )
    found = {one.name: one.why_not for one in own_tests.read_record(record)}
    assert found == {"one": "", "two": "skipped: no GPU", "three": "failure: assert 1 == 2"}
