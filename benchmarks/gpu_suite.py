"""The GPU suite: everything that only a GPU can answer, in one command and under ten minutes.

    python -m gpusq_deploy.benchmarks.gpu_suite --target a100 --build-only    anywhere, once: plans and references
    python -m gpusq_deploy.benchmarks.gpu_suite                               on the GPU: runs them and reports

Needs tensorrt-rtx or, on the GPU, tensorrt; uses both where both are installed, and torch for kernel names and as the
yardstick. Writes report.json with every sample and report.md. What can't be run says why. Unverified on a GPU so far:
none was at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpusq_deploy.artifacts.base import Value, json_from_value, read_value, write_whole
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.receipt import EngineLayer
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.gemm_cases import GemmCase, all_cases, case_feeds, case_model, expected_rows
from gpusq_deploy.benchmarks.gpu_models import build_models, run_models
from gpusq_deploy.benchmarks.gpu_results import (
    BuiltKernel,
    CaseResult,
    Outcome,
    SuiteReport,
    Yardstick,
    markdown_from_report,
)
from gpusq_deploy.benchmarks.gpu_runs import (
    AHEAD,
    BACKENDS,
    ITERATIONS,
    ONLY_BUILT,
    WARMUP,
    Suite,
    measured,
    say,
    target_here,
    tried,
)
from gpusq_deploy.benchmarks.gpu_yardstick import measure_product, torch_problem
from gpusq_deploy.engines.api import BackendName, load_api
from gpusq_deploy.engines.builder import BuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.runtimes import open_session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import scratch_model
from gpusq_deploy.targets import Target, find_target

# Of the largest value in FP16; in INT8 codes, of which the reference isn't rounded and GELU's own error may add one.
_MOST_ERROR = {"fp16": 0.01, "int8": 2.0}


class CaseBuild(Value):
    """What a case was built to, beside its plan, and written after it: where it is, the plan is."""

    version: str
    kernels: tuple[BuiltKernel, ...]


def main() -> None:
    """Entry point: what the user can mend is said without a traceback, and ends with 5."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        print(markdown_from_report(_reported(_asked())))
    except GpusqError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)


def _reported(suite: Suite) -> SuiteReport:
    """Build, run, report."""
    try:
        suite.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GpusqError(f"cannot make the folder: {error.strerror}", place=f"--folder {suite.folder}") from error
    if suite.build_only:
        build_cases(suite)
        build_models(suite)
    report = SuiteReport(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        target=suite.target.name,
        environment=read_environment(),
        models=tuple(run_models(_until(suite, 0.45))),
        cases=tuple(run_cases(_until(suite, 0.85))),
        yardsticks=tuple(run_yardsticks(suite)),
        notes=(f"{ITERATIONS} samples after {WARMUP} warm-ups, CUDA events, copies not included, clocks as found",),
    )
    for name, content in (("report.json", json_from_value(report)), ("report.md", _text(report))):
        write_whole(suite.folder / name, content)
    return report


def _until(suite: Suite, share: float) -> Suite:
    """The same, with a deadline after this share of the time that was left when the suite was asked."""
    return suite._replace(deadline=suite.start + share * (suite.deadline - suite.start))


def build_cases(suite: Suite) -> None:
    """A plan for every case that has none, by TensorRT-RTX, which needs no GPU for it.

    Raises:
        GpusqError: TensorRT-RTX isn't installed, or fails.
    """
    if not suite.ahead:
        say(f"no products: {suite.not_built('')}, tensorrt does on the device")
        return
    folder = suite.folder / "cases"
    folder.mkdir(parents=True, exist_ok=True)
    for case in all_cases():
        if suite.wants(case.name) and not (folder / f"{case.file}.json").exists():
            say(f"building {case.name}")
            plan, built = _build_case(case, suite.target, AHEAD)
            write_whole(folder / f"{case.file}.plan", plan)
            write_whole(folder / f"{case.file}.json", json_from_value(built))


def run_cases(suite: Suite) -> Iterator[CaseResult]:
    """Every case on every backend; TensorRT's are built here, on the device."""
    for backend in BACKENDS:
        for case in all_cases():
            if suite.wants(case.name):
                yield _case_result(suite, case, backend)


def run_yardsticks(suite: Suite) -> Iterator[Yardstick]:
    """The cases' shapes by torch: dense and 2:4, FP16 and INT8."""
    shapes = dict.fromkeys((case.k, case.n, case.batch) for case in all_cases() if suite.wants(case.name))
    for k, n, batch in shapes:
        for product in ("fp16 dense", "fp16 2:4", "int8 dense", "int8 2:4"):
            refusal = ONLY_BUILT if suite.build_only else torch_problem()
            refusal = refusal or suite.late
            outcome = Outcome(why_not=refusal) if refusal else measure_product(k, n, batch, product, ITERATIONS)
            yield Yardstick(k=k, n=n, batch=batch, product=product, outcome=outcome)


def _case_result(suite: Suite, case: GemmCase, backend: BackendName) -> CaseResult:
    plan, built, refusal = _case_plan(suite, case, backend)
    outcome = Outcome(why_not=refusal)
    if not refusal:
        _, outcome = tried(lambda: (None, _run_case(case, plan, backend)))
    return CaseResult(case=case, backend=backend, version=built.version, kernels=built.kernels, outcome=outcome)


def _case_plan(suite: Suite, case: GemmCase, backend: BackendName) -> tuple[Path, CaseBuild, str]:
    """A case's plan, what it was built to, and why it can't be run; empty where it can."""
    folder, built, refusal = suite.folder / "cases", CaseBuild(version="", kernels=()), suite.refusal(backend)
    plan, record = (folder / f"{case.file}{ending}" for ending in (".plan", ".json"))
    try:
        if backend == AHEAD:
            there = plan.exists() and record.exists()
            built = read_value(record, CaseBuild) if there else built
            refusal = refusal or ("" if there else suite.not_built("its plan"))
        elif not refusal:
            folder.mkdir(parents=True, exist_ok=True)
            plan = folder / f"{case.file}.{backend}.plan"
            content, built = _build_case(case, suite.target, backend)
            write_whole(plan, content)
    except GpusqError as error:
        refusal = refusal or f"building failed: {error.what}"
    return plan, built, refusal


def _build_case(case: GemmCase, target: Target, backend: BackendName) -> tuple[bytes, CaseBuild]:
    with scratch_model(case_model(case)) as path:
        batch = BatchRange(minimum=case.batch, optimum=case.batch, maximum=case.batch)
        settings = BuildSettings(batch=batch, sparse=case.weights == "2:4")
        built = build_engine(path, target, settings, BuildOptions(backend=backend))
    return built.plan, CaseBuild(version=built.version, kernels=tuple(_kernel(layer) for layer in built.layers))


def _kernel(layer: EngineLayer) -> BuiltKernel:
    return BuiltKernel(
        name=layer.name,
        kind=layer.kind,
        inputs=tuple(tensor.dtype for tensor in layer.inputs),
        outputs=tuple(tensor.dtype for tensor in layer.outputs),
        tactic=layer.tactic,
    )


def _run_case(case: GemmCase, plan: Path, backend: BackendName) -> Outcome:
    feeds = case_feeds(case)
    with contextlib.closing(open_session(plan, backend)) as session:
        got = session.run(feeds)["y"][[0, -1]].astype(np.float64)
        wanted = expected_rows(case, feeds["x"][[0, -1]])
        largest = 1.0 if case.output != "fp16" else float(np.abs(wanted).max())
        error = float(np.abs(got - wanted).max()) / largest
        most = _MOST_ERROR["fp16" if case.output == "fp16" else "int8"]
        if not error <= most:
            return Outcome(error=error, why_not=f"not timed, for it is wrong: error {error:.3g}, at most {most:g}")
        return measured(session, feeds, error=error)


def _asked() -> Suite:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("gpu-suite"), help="plans, and the report")
    parser.add_argument("--target", help="GPU; by default this machine's, else a100")
    parser.add_argument("--only", default="*", help="shell pattern on names such as 'ViT-S qkv b8*' or 'DeiT-S INT8'")
    parser.add_argument("--build-only", action="store_true", help="build plans and references, run nothing")
    parser.add_argument("--minutes", type=float, default=10.0, help="stop starting things after so long")
    asked = parser.parse_args()
    start = time.monotonic()
    target = target_here() if asked.target is None else find_target(asked.target)
    if asked.build_only and AHEAD in target.ahead_of_time:
        load_api(AHEAD)
    return Suite(
        folder=asked.folder,
        target=target,
        only=asked.only,
        build_only=asked.build_only,
        start=start,
        deadline=start + 60 * asked.minutes,
    )


def _text(report: SuiteReport) -> bytes:
    return markdown_from_report(report).encode()


if __name__ == "__main__":
    main()
