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
import functools
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar, get_args

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
    ModelResult,
    Outcome,
    Product,
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
    Failure,
    Suite,
    attempt,
    build_or_say,
    built_here,
    measured,
    outcome_of,
    say,
    target_here,
)
from gpusq_deploy.benchmarks.gpu_yardstick import LAUNCHES, measure_product, torch_problem
from gpusq_deploy.engines.api import BackendName, load_api
from gpusq_deploy.engines.builder import BuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.runtimes import open_session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import scratch_model
from gpusq_deploy.targets import Target, find_target

# Of the largest value in FP16; in INT8 codes, of which the reference isn't rounded and GELU's own error may add one.
_MOST_ERROR = {"fp16": 0.01, "int8": 2.0}


_T = TypeVar("_T")
_INTERRUPTED = "interrupted: what isn't here wasn't run"


class CaseBuild(Value):
    """What a case was built to, beside its plan, and written after it: where it is, the plan is."""

    version: str
    kernels: tuple[BuiltKernel, ...]


def main() -> None:
    """Entry point: what the user can mend is said without a traceback, and ends with 5; Ctrl-C with 130."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        report = _reported(_asked())
    except GpusqError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    print(markdown_from_report(report))
    if _INTERRUPTED in report.notes:
        sys.exit(130)


def _reported(suite: Suite) -> SuiteReport:
    """Build, run, report; what was found until an interruption is reported too."""
    try:
        suite.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GpusqError(f"cannot make the folder: {error.strerror}", place=f"--folder {suite.folder}") from error
    if suite.build_only:
        build_cases(suite)
        build_models(suite)
    notes = [f"{ITERATIONS} samples after {WARMUP} warm-ups, CUDA events, copies not included, clocks as found"]
    notes.append(f"torch's products: each sample is the mean of {LAUNCHES} in a row; kernels are of one")
    models: list[ModelResult] = []
    cases: list[CaseResult] = []
    yardsticks: list[Yardstick] = []
    try:
        _keep(models, run_models(_until(suite, 0.45)))
        _keep(cases, run_cases(_until(suite, 0.85)))
        _keep(yardsticks, run_yardsticks(suite))
    except KeyboardInterrupt:
        notes.append(_INTERRUPTED)
    report = SuiteReport(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        target=suite.target.name,
        environment=read_environment(),
        models=tuple(models),
        cases=tuple(cases),
        yardsticks=tuple(yardsticks),
        notes=tuple(notes),
    )
    for name, content in (("report.json", json_from_value(report)), ("report.md", _text(report))):
        write_whole(suite.folder / name, content)
    return report


def _keep(found: list[_T], results: Iterator[_T]) -> None:
    """One by one, so that an interruption loses none."""
    for result in results:
        found.append(result)  # noqa: PERF402 - extend() promises nothing about what it took before an exception


def _until(suite: Suite, share: float) -> Suite:
    """The same, with a deadline after this share of the time that was left when the suite was asked."""
    return suite._replace(deadline=suite.start + share * (suite.deadline - suite.start))


def build_cases(suite: Suite) -> None:
    """A plan for every case that has none: by TensorRT-RTX anywhere, by TensorRT where it and the GPU are.

    A failure is said, and met again when the case is to run.
    """
    for backend in BACKENDS:
        refusal = suite.unbuildable(backend)
        if refusal:
            say(f"no products: {refusal}")
            continue
        for case in all_cases():
            if suite.wants(case.name) and _stored(suite, case, backend) is None:
                say(f"building {case.name} with {backend}")
                build_or_say(functools.partial(_make_case, suite, case, backend))


def run_cases(suite: Suite) -> Iterator[CaseResult]:
    """Every case, on one backend after the other; TensorRT's that weren't built before are built now, on the device."""
    for case in all_cases():
        if suite.wants(case.name):
            yield from (_case_result(suite, case, backend) for backend in BACKENDS)


def run_yardsticks(suite: Suite) -> Iterator[Yardstick]:
    """The cases' shapes by torch: dense and 2:4, FP16 and INT8."""
    shapes = dict.fromkeys((case.k, case.n, case.batch) for case in all_cases() if suite.wants(case.name))
    for k, n, batch in shapes:
        for product in get_args(Product):
            refusal = ONLY_BUILT if suite.build_only else torch_problem()
            outcome = Outcome(why_not=refusal or suite.late)
            if not outcome.why_not:
                outcome = outcome_of(functools.partial(measure_product, k, n, batch, product, ITERATIONS))
            yield Yardstick(k=k, n=n, batch=batch, product=product, outcome=outcome)


def _case_result(suite: Suite, case: GemmCase, backend: BackendName) -> CaseResult:
    plan, built, refusal = _case_plan(suite, case, backend)
    outcome = Outcome(why_not=refusal)
    if not refusal:
        outcome = outcome_of(lambda: _run_case(case, plan, backend))
    return CaseResult(case=case, backend=backend, version=built.version, kernels=built.kernels, outcome=outcome)


def _case_plan(suite: Suite, case: GemmCase, backend: BackendName) -> tuple[Path, CaseBuild, str]:
    """A case's plan, what it was built to, and why it can't be run; empty where it can."""
    plan, _record = _case_files(suite, case, backend)
    nothing, refusal = CaseBuild(version="", kernels=()), suite.refusal(backend)
    stored = _stored(suite, case, backend)
    if stored is not None:
        return plan, stored, refusal
    if backend == AHEAD:
        return plan, nothing, refusal or suite.not_built("its plan")
    if refusal:
        return plan, nothing, refusal
    made = attempt(lambda: _make_case(suite, case, backend))
    return (plan, nothing, f"building failed: {made.why}") if isinstance(made, Failure) else (plan, made, "")


def _stored(suite: Suite, case: GemmCase, backend: BackendName) -> CaseBuild | None:
    """What a case was built to before, by the version that is here; None where there is no whole such build."""
    plan, record = _case_files(suite, case, backend)
    if not (plan.exists() and record.exists()):
        return None
    found = attempt(lambda: read_value(record, CaseBuild))
    return None if isinstance(found, Failure) or not built_here(backend, found.version) else found


def _case_files(suite: Suite, case: GemmCase, backend: BackendName) -> tuple[Path, Path]:
    """A case's plan for the target, and what it was built to, which is written after it."""
    folder = suite.folder / "cases" / suite.target.name / backend
    return folder / f"{case.file}.plan", folder / f"{case.file}.json"


def _make_case(suite: Suite, case: GemmCase, backend: BackendName) -> CaseBuild:
    plan, record = _case_files(suite, case, backend)
    plan.parent.mkdir(parents=True, exist_ok=True)
    content, built = _build_case(case, suite.target, backend)
    write_whole(plan, content)
    write_whole(record, json_from_value(built))
    return built


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
    suite = Suite(
        folder=asked.folder,
        target=target,
        only=asked.only,
        build_only=asked.build_only,
        start=start,
        deadline=start + 60 * asked.minutes,
    )
    if suite.build_only and suite.ahead and all(suite.unbuildable(backend) for backend in BACKENDS):
        load_api(AHEAD)
    return suite


def _text(report: SuiteReport) -> bytes:
    return markdown_from_report(report).encode()


if __name__ == "__main__":
    main()
