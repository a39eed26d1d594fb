"""The GPU suite up to the device call: plans are built for real, and the device is pretended."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.benchmarks import gpu_runs, gpu_suite
from gpusq_deploy.benchmarks.gemm_cases import GemmCase, all_cases, expected_rows
from gpusq_deploy.benchmarks.gpu_models import BATCHES, run_models
from gpusq_deploy.benchmarks.gpu_results import Outcome, Product, SuiteReport
from gpusq_deploy.benchmarks.gpu_runs import ITERATIONS, TIME_IS_UP, WARMUP, Suite
from gpusq_deploy.benchmarks.gpu_suite import build_cases, main, run_cases, run_yardsticks
from gpusq_deploy.benchmarks.gpu_yardstick import Kernels
from gpusq_deploy.engines.builder import build_engine
from gpusq_deploy.engines.gpu import Gpu
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.targets import find_target

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)

ONLY = "ViT-S proj b1 2:4 int8*"
SPARSE = "sm80_xmma_sparse_gemm_i8i8_i8i32_f32_tn_n_sptensor16x8x64"


def suite(folder: Path, *, only: str = ONLY, minutes: float = 1.0, build_only: bool = False) -> Suite:
    now = time.monotonic()
    return Suite(folder, find_target("a100"), only, build_only, now, now + 60 * minutes)


class Device:
    """A session that computes a case as it should be, plus `wrong`."""

    def __init__(self, case: GemmCase, wrong: float = 0.0) -> None:
        self.case, self.wrong = case, wrong
        self.timed = self.closed = 0

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        values = np.rint(expected_rows(self.case, feeds["x"]) + self.wrong)
        return {"y": np.clip(values, -128, 127).astype(np.int8)}

    def timer(self, _feeds: Mapping[str, NDArray[Any]]) -> Callable[[], float]:
        def take() -> float:
            self.timed += 1
            return 0.5

        return take

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """A machine with an A100 and tensorrt-rtx, and the sessions that were opened on it."""
    opened: list[Device] = []

    def why_not(backend: str) -> str | None:
        return None if backend == "tensorrt-rtx" else "the package tensorrt is not installed"

    def open_session(plan: Path, _backend: str) -> Device:
        assert plan.stat().st_size > 1000
        case = next(one for one in all_cases() if one.file == plan.stem)
        opened.append(Device(case))
        return opened[-1]

    def kernels_of(_run: object) -> Kernels:
        return Kernels((SPARSE, "epilogue"), (9.0, 1.5))

    monkeypatch.setattr(gpu_runs, "why_not", why_not)
    monkeypatch.setattr(gpu_runs, "find_gpu", lambda: Gpu("A100", "8.0"))
    monkeypatch.setattr(gpu_suite, "open_session", open_session)
    monkeypatch.setattr(gpu_runs, "torch_problem", lambda: "")
    monkeypatch.setattr(gpu_runs, "kernels_of", kernels_of)
    return opened


def test_cases_are_built_once_run_and_compared(tmp_path: Path, device: list[Device]) -> None:
    asked = suite(tmp_path)
    build_cases(asked)
    plans = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cases").rglob("*.plan")}
    assert len(plans) == 3
    build_cases(asked)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cases").rglob("*.plan")} == plans
    results = list(run_cases(asked))
    ran = [result for result in results if not result.outcome.why_not]
    assert [result.backend for result in ran] == ["tensorrt-rtx"] * 3
    for result in ran:
        assert len(result.outcome.samples_ms) == ITERATIONS
        assert result.outcome.error is not None
        assert result.outcome.error <= 0.5
        assert result.outcome.sparse == "1 of 2"
        assert result.outcome.total_us == 10.5
        assert result.kernels
    assert {session.timed for session in device} == {WARMUP + ITERATIONS}
    assert all(session.closed for session in device)
    others = {result.outcome.why_not for result in results if result.backend == "tensorrt"}
    assert others == {"tensorrt can't run plans here: the package tensorrt is not installed"}


def test_wrong_outputs_show_and_are_not_timed(
    tmp_path: Path, device: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = suite(tmp_path, only="ViT-S proj b1 2:4 int8")
    build_cases(asked)
    wrong = next(one for one in all_cases() if one.name == asked.only)

    def open_wrong(_plan: Path, _backend: str) -> Device:
        return Device(wrong, 9.0)

    monkeypatch.setattr(gpu_suite, "open_session", open_wrong)
    outcome = next(iter(run_cases(asked))).outcome
    assert outcome.error is not None
    assert outcome.error > 8
    assert outcome.samples_ms == ()
    assert "not timed, for it is wrong" in outcome.why_not
    assert device == []


def test_one_failure_is_a_line_and_not_the_end(
    tmp_path: Path, device: list[Device], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = suite(tmp_path)
    build_cases(asked)

    def fail(_plan: Path, _backend: str) -> Device:
        raise GpusqError("out of memory")

    monkeypatch.setattr(gpu_suite, "open_session", fail)
    found = [result.outcome.why_not for result in run_cases(asked) if result.backend == "tensorrt-rtx"]
    assert found == ["failed: out of memory"] * 3
    assert device == []


def test_what_there_is_no_time_or_plan_for_says_so(tmp_path: Path, device: list[Device]) -> None:
    late = suite(tmp_path, minutes=-1.0)
    assert {result.outcome.why_not for result in run_cases(late) if result.backend == "tensorrt-rtx"} == {TIME_IS_UP}
    assert {result.outcome.why_not for result in run_cases(suite(tmp_path)) if result.backend == "tensorrt-rtx"} == {
        "its plan wasn't built: --build-only does"
    }
    models = [one for one in run_models(suite(tmp_path, only="DeiT-S INT8")) if one.backend == "tensorrt-rtx"]
    assert [result.batch for result in models] == list(BATCHES)
    assert {result.outcome.why_not for result in models} == {"its plan wasn't built: --build-only does"}
    assert {one.outcome.why_not for one in run_yardsticks(suite(tmp_path, build_only=True))} == {
        "only built, as --build-only asked"
    }
    assert device == []


def test_a_plan_whose_build_was_killed_before_its_record_counts_as_none(tmp_path: Path, device: list[Device]) -> None:
    asked = suite(tmp_path)
    build_cases(asked)
    for record in (tmp_path / "cases").rglob("*.json"):
        record.unlink()
    found = {result.outcome.why_not for result in run_cases(asked) if result.backend == "tensorrt-rtx"}
    assert found == {"its plan wasn't built: --build-only does"}
    assert device == []
    build_cases(asked)
    assert not any(result.outcome.why_not for result in run_cases(asked) if result.backend == "tensorrt-rtx")


def test_a_case_that_cant_be_built_doesnt_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def fail_first(*words: Any) -> Any:
        asked.append(words)
        if len(asked) == 1:
            raise GpusqError("no memory")
        return build_engine(*words)

    monkeypatch.setattr(gpu_suite, "build_engine", fail_first)
    build_cases(suite(tmp_path))
    assert len(list((tmp_path / "cases").rglob("*.json"))) == 2
    assert "failed: no memory" in capsys.readouterr().err


def test_plans_of_another_version_are_built_again(tmp_path: Path, device: list[Device]) -> None:
    asked = suite(tmp_path, only="ViT-S proj b1 2:4 int8")
    build_cases(asked)
    (record,) = (tmp_path / "cases" / "a100" / "tensorrt-rtx").glob("*.json")
    before = record.read_text()
    record.write_text(before.replace('"version": "1.', '"version": "0.'))
    assert record.read_text() != before
    found = {result.outcome.why_not for result in run_cases(asked) if result.backend == "tensorrt-rtx"}
    assert found == {"its plan wasn't built: --build-only does"}
    build_cases(asked)
    assert record.read_text() == before
    assert device == []


def test_another_gpu_is_refused(tmp_path: Path, device: list[Device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_runs, "find_gpu", lambda: Gpu("RTX 4090", "8.9"))
    found = {result.outcome.why_not for result in run_cases(suite(tmp_path)) if result.backend == "tensorrt-rtx"}
    assert found == {"this GPU is a RTX 4090 (8.9), not a a100"}
    assert device == []


def test_the_command_builds_and_reports_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gpu_suite", "--folder", str(tmp_path / "out"), "--target", "a100", "--only", ONLY, "--build-only"]
    monkeypatch.setattr(sys, "argv", words)
    main()
    report = read_value(tmp_path / "out" / "report.json", SuiteReport)
    assert report.target == "a100"
    assert {result.outcome.why_not for result in report.cases} == {"only built, as --build-only asked"}
    assert len(report.yardsticks) == len(get_args(Product))
    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "out" / "report.md").read_text().strip()
    assert "| ViT-S proj b1 2:4 int8-plain | tensorrt-rtx | 1 | Int8 |" in printed


def test_what_ran_before_an_interruption_is_reported(
    tmp_path: Path, device: list[Device], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_cases(suite(tmp_path))

    def press(*words: Any, error: float | None) -> Outcome:
        if len(device) == 3:
            raise KeyboardInterrupt
        return gpu_runs.measured(*words, error=error)

    monkeypatch.setattr(gpu_suite, "measured", press)
    words = ["gpu_suite", "--folder", str(tmp_path), "--target", "a100", "--only", ONLY]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    report = read_value(tmp_path / "report.json", SuiteReport)
    assert len([one for one in report.cases if one.outcome.samples_ms]) == 2
    assert "interrupted" in " ".join(report.notes)
    assert SPARSE in capsys.readouterr().out


def test_backends_take_turns_case_by_case(tmp_path: Path, device: list[Device]) -> None:
    """A suite that runs out of time has then compared them where it has been."""
    results = list(run_cases(suite(tmp_path)))
    assert [result.backend for result in results] == ["tensorrt-rtx", "tensorrt"] * 3
    assert device == []


def test_kernels_are_counted_by_name() -> None:
    assert Outcome().sparse == "not seen"
    assert Outcome(kernels=(SPARSE, "x", SPARSE)).sparse == "2 of 3"
    assert Outcome(samples_ms=(1.0, 9.0, 2.0)).median_ms == 2.0
