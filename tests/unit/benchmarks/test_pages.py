"""Runs and comparisons as pages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pages
from numpy.typing import NDArray

from gpusq_deploy.artifacts.runs import Runs
from gpusq_deploy.benchmarks.bundles.comparison import compare_bundles
from gpusq_deploy.benchmarks.comparison_html import bundle_comparison_page, comparison_page
from gpusq_deploy.benchmarks.latency_html import latency_parts
from gpusq_deploy.benchmarks.regression import compare
from gpusq_deploy.bundle.report.html.report import report_page

MakeRuns = Callable[[Mapping[int, NDArray[np.float64]]], Runs]
DrawSamples = Callable[..., NDArray[np.float64]]


def test_every_process_is_a_row_and_every_inference_a_dot(make_runs: MakeRuns, draw: DrawSamples) -> None:
    samples = draw(0, repeats=3, iterations=10)
    (part,) = latency_parts([make_runs({1: samples, 4: samples * 2})])
    assert [(row.batch, row.process) for row in part.rows] == [(1, 0), (4, 0), (1, 1), (4, 1), (1, 2), (4, 2)]
    rows: list[list[float]] = samples.tolist()
    assert [float(row.median) for row in part.rows[::2]] == [round(statistics.median(each), 3) for each in rows]
    assert [float(row.highest) for row in part.rows[::2]] == [round(max(each), 3) for each in rows]
    assert [plot.count("<circle") for _, plot in part.plots] == [30, 30]


def test_of_very_many_inferences_some_are_drawn_and_it_is_said(make_runs: MakeRuns) -> None:
    samples = np.array(range(1, 8001), dtype=np.float64).reshape(2, 4000)
    (part,) = latency_parts([make_runs({1: samples})])
    ((caption, plot),) = part.plots
    assert caption.endswith("one of 3 is drawn")
    assert plot.count("<circle") == 2 * math.ceil(4000 / 3)


def test_runs_of_an_engine_are_told_from_those_of_a_model_and_of_another_build(
    make_runs: MakeRuns, draw: DrawSamples, tmp_path: Path
) -> None:
    bundle = pages.bundle(tmp_path)
    runs = make_runs({1: draw(0)})
    measured = [msgspec.structs.replace(runs, model_digest=digest) for digest in ("sha256:e", "sha256:m", "sha256:x")]
    parts = latency_parts(measured, bundle)
    assert [part.of_engine for part in parts] == [True, False, False]
    assert parts[0].title.startswith("engine a100, ")
    assert parts[1].title.startswith("model.onnx, ")
    assert parts[2].title.endswith(", of another build")
    page = pages.Page(report_page(bundle, latency=parts))
    assert page.words.count("Each process, ms per inference") == 3
    assert "Speed (measured)" in page.text
    assert "Speed (measured)" not in pages.Page(report_page(bundle, latency=parts[1:])).text


def test_a_comparison_has_its_verdict_its_table_and_both_distributions(make_runs: MakeRuns, draw: DrawSamples) -> None:
    base, head = make_runs({1: draw(0)}), make_runs({1: draw(1, factor=1.3)})
    page = pages.Page(comparison_page(compare(base, head, 0.03), base, head))
    assert "regressed: budget +3.00%" in page.words
    assert page.data["verdict"] == "regressed"
    assert page.words.count("Each process, ms per inference") == 2
    assert {"base", "head"} <= set(page.words)


def test_a_comparison_of_bundles_lists_the_worse_first(tmp_path: Path) -> None:
    base = pages.bundle(tmp_path)
    (tmp_path / "head").mkdir()
    head = pages.bundle(tmp_path / "head", precision="fp16")
    page = pages.Page(bundle_comparison_page(compare_bundles(base, head), base, head))
    assert "worse; nothing was timed" in page.words
    place = page.words.index("worse")
    assert page.words[place : place + 5] == ["worse", "a100", "built", "int8", "fp16"]
    assert page.words.count("INT8") == 2
