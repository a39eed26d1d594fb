from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from gpusq_deploy.artifacts.runs import Runs
from gpusq_deploy.benchmarks.regression import compare
from gpusq_deploy.benchmarks.regression_report import text_from_comparison
from gpusq_deploy.benchmarks.report import text_from_runs
from gpusq_deploy.benchmarks.summary import summarise

MakeRuns = Callable[[dict[int, Any]], Runs]
Draw = Callable[..., Any]


def test_summaries_count_all_repeats(make_runs: MakeRuns) -> None:
    matrix = np.arange(1.0, 101.0).reshape(5, 20)
    (summary,) = summarise(make_runs({8: matrix}))
    assert (summary.batch, summary.samples, summary.median_ms, summary.p90_ms) == (8, 100, 50.5, 90.0)
    assert summary.throughput == 8000 / 50.5
    assert summary.p99_ms is None
    assert summary.remarks[0] == "p99 needs 459 samples, there are 100"
    assert summary.remarks[1].startswith("unstable: ")


def test_the_table_of_runs_says_what_where_and_what_is_missing(make_runs: MakeRuns) -> None:
    runs = msgspec.structs.replace(make_runs({1: np.full((5, 10), 2.0), 32: np.full((5, 10), 40.0)}), notes=("a note",))
    lines = text_from_runs(runs).splitlines()
    assert lines[1] == "runtime  onnxruntime 1.0 on Some CPU (asked for)"
    assert lines[2] == "machine  Some CPU, 2 cores, no GPU, CPU clocks unknown, Linux"
    assert lines[3] == "taken    5 sessions x 10 inferences after 2 warm-ups"
    assert [line.split() for line in lines[6:8]] == [
        ["1", "50", "2.000", "-", "-", "500.0", "0.0%"],
        ["32", "50", "40.000", "-", "-", "800.0", "0.0%"],
    ]
    assert "batch 1: p90 needs 64 samples, there are 50" in lines
    assert lines[-1] == "a note"


def test_the_machine_line_names_gpu_and_limits(make_runs: MakeRuns) -> None:
    runs = make_runs({1: np.full((5, 10), 2.0)})
    changed = msgspec.structs.replace(runs.environment, gpu="Orin", cpu_quota=1.5, clocks_locked=True)
    text = text_from_runs(msgspec.structs.replace(runs, environment=changed))
    assert "limited to 1.5 cores' time, Orin, driver unknown, CPU clocks locked" in text


def test_a_comparison_ends_with_its_verdict(make_runs: MakeRuns, draw: Draw) -> None:
    lines = text_from_comparison(
        compare(make_runs({1: draw(1)}), make_runs({1: draw(2, factor=1.2)}), 0.03)
    ).splitlines()
    assert lines[0].split()[:3] == ["batch", "base", "ms"]
    assert lines[1].endswith("regressed")
    assert lines[-1] == "regressed (budget +3.00%)"


def test_numbers_that_could_not_be_had_are_dashes(make_runs: MakeRuns, draw: Draw) -> None:
    short = {"repeats": 2}
    comparison = compare(make_runs({1: draw(1, **short)}), make_runs({1: draw(2, **short)}), 0.03)
    assert text_from_comparison(comparison).splitlines()[1].split()[-3:] == ["-", "-", "inconclusive"]


def test_an_impossible_comparison_lists_its_reasons(make_runs: MakeRuns, draw: Draw) -> None:
    text = text_from_comparison(compare(make_runs({1: draw(1)}), make_runs({2: draw(2)}), 0.03))
    assert "no shared batch size: [1] in base, [2] in head" in text.splitlines()
    assert text.endswith("\n\nnot comparable (budget +3.00%)")
