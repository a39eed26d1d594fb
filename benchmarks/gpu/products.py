"""Step 3: which single products run on a sparse kernel; the cases are `cases`', the plans `prepare`'s."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.benchmarks.gpu.cases import GemmCase, all_cases, case_feeds, expected_rows
from gpusq_deploy.benchmarks.gpu.prepare import Prepared, plan_and_record
from gpusq_deploy.benchmarks.gpu.runs import TIME_IS_UP, Engine, Ground, no_gpu, refused, with_facts
from gpusq_deploy.benchmarks.gpu.values import Fact, Finding, Way

# Of the largest value in FP16; in INT8 codes, of which the reference isn't rounded and GELU's own error may add one.
MOST_ERROR = {"fp16": 0.01, "int8": 2.0}


def items(_ground: Ground) -> tuple[str, ...]:
    """Every case, what tells most first."""
    return tuple(case.name for case in all_cases())


def run(item: str, ground: Ground) -> Iterator[Finding]:
    """The case by every way that works."""
    finding, ways = Finding(step="products", name=item), ground.ways
    reason = no_gpu() or ways.why_not
    if reason:
        yield refused(finding, reason)
        return
    case = next(case for case in all_cases() if case.name == item)
    for way in ways.ways:
        yield _by_one_way(case, way, ground)


def _by_one_way(case: GemmCase, way: Way, ground: Ground) -> Finding:
    facts: dict[str, Fact] = {"way": way.name, "flops": case.flops}
    plan, record = plan_and_record(ground.work, case.file, way)
    if ground.wait_for(record) is None:
        return Finding(step="products", name=case.name, facts=facts, why_not=f"{TIME_IS_UP}; its plan wasn't ready")
    prepared = read_value(record, Prepared)
    finding = Finding(
        step="products",
        name=case.name,
        facts={**facts, "build_seconds": prepared.seconds, "writes": prepared.writes},
        built=prepared.kernels,
        why_not=prepared.why_not,
    )
    return finding if prepared.why_not else measured(case, plan, way, finding)


def measured(case: GemmCase, plan: Path, way: Way, finding: Finding) -> Finding:
    """Run a case, hold its first and last row against integer arithmetic, and time it; what is wrong says so.

    Raises:
        GpusqError: It failed.
    """
    feeds = case_feeds(case)
    with contextlib.closing(Engine(plan, way)) as engine:
        got = engine.run(feeds)["y"][[0, -1]].astype(np.float64)
        wanted = expected_rows(case, feeds["x"][[0, -1]])
        largest = 1.0 if case.output != "fp16" else float(np.abs(wanted).max())
        error = float(np.abs(got - wanted).max()) / largest
        finding = with_facts(finding, error=error, launch=engine.launch)
        most = MOST_ERROR["fp16" if case.output == "fp16" else "int8"]
        if not error <= most:
            finding = refused(finding, f"its outputs are wrong: error {error:.3g}, at most {most:g}")
        return engine.timed(feeds, finding)
