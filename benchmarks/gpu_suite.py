"""The GPU suite: everything that only a GPU can answer, in one command and under ten minutes.

    python -m gpusq_deploy.benchmarks.gpu_suite --target a100 --build-only    anywhere, once: plans and references
    python -m gpusq_deploy.benchmarks.gpu_suite                               on the GPU: runs them and reports

Needs tensorrt-rtx alone; uses tensorrt where it is installed, and torch for kernel names and as the yardstick. Writes
report.json with every sample and report.md. What can't be run says why. Unverified on a GPU so far: none was at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fnmatch
import functools
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from gpusq_deploy.artifacts.base import json_from_value, written_whole
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.receipt import EngineLayer
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.gemm_cases import GemmCase, all_cases, case_feeds, case_model, expected_rows
from gpusq_deploy.benchmarks.gpu_results import (
    BuiltKernel,
    CaseResult,
    ModelResult,
    Outcome,
    SuiteReport,
    Yardstick,
    markdown_from_report,
)
from gpusq_deploy.benchmarks.gpu_yardstick import kernels_of, measure_product, torch_problem
from gpusq_deploy.benchmarks.reference import LEAST_DB
from gpusq_deploy.engines.api import BackendName
from gpusq_deploy.engines.builder import BuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.gpu import Gpu, find_gpu
from gpusq_deploy.engines.runtimes import open_session, why_not
from gpusq_deploy.engines.session import Session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.numerics.error import sqnr_db
from gpusq_deploy.targets import Target, find_target, load_targets

MODELS = {
    "DeiT-T": "deit_tiny_patch16_224",
    "DeiT-S": "deit_small_patch16_224",
    "DeiT-B": "deit_base_patch16_224",
    "Swin-T": "swin_tiny_patch4_window7_224",
    "Swin-B-384": "swin_base_patch4_window12_384",
    "DINOv2-S": "vit_small_patch14_dinov2",
}
# timm's DINOv2 is made for 518 pixels; 224 is what it is mostly deployed with.
SIZES = {"DINOv2-S": 224}
PRECISIONS = {
    "FP32": ("--fp32",),
    "FP16": (),
    "INT8": ("--int8", "--calib", "random"),
    "2:4 FP16": ("--sparse", "--prune", "magnitude"),
    "2:4 INT8": ("--int8", "--calib", "random", "--sparse", "--prune", "magnitude"),
}
BATCHES = (8, 32, 1, 128)
BACKENDS: tuple[BackendName, ...] = ("tensorrt-rtx", "tensorrt")
WARMUP, ITERATIONS = 10, 50
REFERENCE_SAMPLES = 2
# Of the largest value in FP16; in INT8 codes, of which the reference isn't rounded and GELU's own error may add one.
_MOST_ERROR = {"fp16": 0.01, "int8": 2.0}
TIME_IS_UP = "the time was up"

Array = NDArray[Any]


class Suite(NamedTuple):
    """What is asked: where things lie, for which GPU, which part of it, from when until when (`time.monotonic`)."""

    folder: Path
    target: Target
    only: str
    build_only: bool
    start: float
    deadline: float

    def wants(self, name: str) -> bool:
        """Whether a case or a model is asked for."""
        return fnmatch.fnmatchcase(name, self.only)

    def refusal(self, backend: BackendName) -> str:
        """Why nothing can be run on a backend now; empty where it can."""
        if self.build_only:
            return "only built, as --build-only asked"
        reason = why_not(backend)
        if reason is not None:
            return f"{backend} can't run plans here: {reason}"
        gpu = find_gpu()
        if isinstance(gpu, Gpu) and gpu.compute_capability != self.target.compute_capability:
            return f"this GPU is a {gpu.name} ({gpu.compute_capability}), not a {self.target.name}"
        return TIME_IS_UP if time.monotonic() > self.deadline else ""


class CaseBuild(msgspec.Struct):
    """What a case was built to, beside its plan."""

    version: str
    kernels: tuple[BuiltKernel, ...]


def main() -> None:
    """Build, run, report."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    suite = _asked()
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
        with written_whole(suite.folder / name) as temporary:
            temporary.write_bytes(content)
    print(markdown_from_report(report))


def _until(suite: Suite, share: float) -> Suite:
    """The same, with a deadline after this share of the time that was left when the suite was asked."""
    return suite._replace(deadline=suite.start + share * (suite.deadline - suite.start))


def build_cases(suite: Suite) -> None:
    """A plan for every case that has none, by TensorRT-RTX, which needs no GPU for it."""
    folder = suite.folder / "cases"
    folder.mkdir(parents=True, exist_ok=True)
    for case in all_cases():
        if suite.wants(case.name) and not (folder / f"{case.file}.json").exists():
            _say(f"building {case.name}")
            plan, built = _build_case(case, suite.target, "tensorrt-rtx")
            (folder / f"{case.file}.plan").write_bytes(plan)
            (folder / f"{case.file}.json").write_bytes(msgspec.json.encode(built))


def build_models(suite: Suite) -> None:
    """A bundle for every model and precision that has none, with random weights, and outputs by ONNX Runtime."""
    folder = suite.folder / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for model, precision in _models(suite):
        bundle = folder / f"{_file(model, precision)}.gpusq"
        if bundle.exists():
            continue
        _say(f"building {model} {precision}")
        checkpoint = _checkpoint(folder, model)
        command = [sys.executable, "-m", "gpusq_deploy", "build", str(checkpoint), "--arch", f"timm:{MODELS[model]}"]
        command += ["--arch-arg", f"img_size={SIZES[model]}"] if model in SIZES else []
        command += [*PRECISIONS[precision], "--target", suite.target.name, "--batch", "1:8:128", "--out", str(bundle)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        _save_reference(bundle)


def run_cases(suite: Suite) -> Iterator[CaseResult]:
    """Every case on every backend; TensorRT's are built here, on the device."""
    for backend in BACKENDS:
        for case in all_cases():
            if suite.wants(case.name):
                refusal = suite.refusal(backend)
                yield _case_result(suite, case, backend, refusal)


def run_models(suite: Suite) -> Iterator[ModelResult]:
    """Every model in every precision at every batch size, by TensorRT-RTX's plans."""
    for model, precision in _models(suite):
        bundle = suite.folder / "models" / f"{_file(model, precision)}.gpusq"
        plan = bundle / "engines" / f"{suite.target.name}.plan"
        refusal = suite.refusal("tensorrt-rtx") or ("" if plan.exists() else "its plan wasn't built: --build-only does")
        for batch in BATCHES:
            decibels: float | None = None
            outcome = Outcome(why_not=refusal)
            if not refusal:
                decibels, outcome = _tried(functools.partial(_run_model, plan, bundle, batch))
            yield ModelResult(
                model=model,
                precision=precision,
                backend="tensorrt-rtx",
                batch=batch,
                sqnr_db=decibels,
                outcome=outcome,
            )


def run_yardsticks(suite: Suite) -> Iterator[Yardstick]:
    """The cases' shapes by torch: dense and 2:4, FP16 and INT8."""
    shapes = dict.fromkeys((case.k, case.n, case.batch) for case in all_cases() if suite.wants(case.name))
    for k, n, batch in shapes:
        for product in ("fp16 dense", "fp16 2:4", "int8 dense", "int8 2:4"):
            refusal = "only built, as --build-only asked" if suite.build_only else torch_problem()
            refusal = refusal or (TIME_IS_UP if time.monotonic() > suite.deadline else "")
            outcome = Outcome(why_not=refusal) if refusal else measure_product(k, n, batch, product, ITERATIONS)
            yield Yardstick(k=k, n=n, batch=batch, product=product, outcome=outcome)


def _case_result(suite: Suite, case: GemmCase, backend: BackendName, refusal: str) -> CaseResult:
    base = suite.folder / "cases" / case.file
    built, plan = CaseBuild(version="", kernels=()), base.with_name(f"{case.file}.plan")
    if backend == "tensorrt-rtx":
        if plan.exists():
            built = msgspec.json.decode(base.with_name(f"{case.file}.json").read_bytes(), type=CaseBuild)
        else:
            refusal = refusal or "its plan wasn't built: --build-only does"
    elif not refusal:
        try:
            content, built = _build_case(case, suite.target, backend)
        except GpusqError as error:
            refusal = f"building failed: {error.what}"
        else:
            plan = base.with_name(f"{case.file}.{backend}.plan")
            plan.write_bytes(content)
    outcome = Outcome(why_not=refusal)
    if not refusal:
        _, outcome = _tried(lambda: (None, _run_case(case, plan, backend)))
    return CaseResult(case=case, backend=backend, version=built.version, kernels=built.kernels, outcome=outcome)


def _build_case(case: GemmCase, target: Target, backend: BackendName) -> tuple[bytes, CaseBuild]:
    with _scratch_model(case_model(case)) as path:
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
        return _measured(session, feeds, error=error)


def _run_model(plan: Path, bundle: Path, batch: int) -> tuple[float, Outcome]:
    reference = np.load(bundle.with_suffix(".npz"))
    samples = reference["x"]
    with contextlib.closing(open_session(plan, "tensorrt-rtx")) as session:
        name, output = session.inputs[0].name, session.outputs[0].name
        got = session.run({name: samples})[output]
        feeds: dict[str, Array] = {name: np.resize(samples, (batch, *samples.shape[1:]))}
        decibels = sqnr_db(reference["y"], got)
        if not decibels >= LEAST_DB:
            return decibels, Outcome(why_not=f"not timed, for it is wrong: {decibels:.1f} dB to ONNX Runtime's outputs")
        return decibels, _measured(session, feeds, error=None)


def _measured(session: Session, feeds: dict[str, Array], *, error: float | None) -> Outcome:
    for _ in range(WARMUP):
        session.time_ms(feeds)
    samples = tuple(session.time_ms(feeds) for _ in range(ITERATIONS))
    kernels = () if torch_problem() else kernels_of(lambda: session.run(feeds))
    return Outcome(samples_ms=samples, error=error, kernels=kernels)


def _tried(run: Callable[[], tuple[float | None, Outcome]]) -> tuple[float | None, Outcome]:
    """One failure is one line of the report, not the end of the suite."""
    try:
        return run()
    except GpusqError as error:
        return None, Outcome(why_not=f"failed: {error.what}")


def _save_reference(bundle: Path) -> None:
    with contextlib.closing(open_session(bundle / "model.onnx", "onnxruntime")) as session:
        shape = (REFERENCE_SAMPLES, *session.inputs[0].shape[1:])
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        y = session.run({session.inputs[0].name: x})[session.outputs[0].name]
    np.savez(bundle.with_suffix(".npz"), x=x, y=y)


def _checkpoint(folder: Path, model: str) -> Path:
    import timm
    import torch

    path = folder / f"{model}.pt"
    if not path.exists():
        torch.manual_seed(0)
        size: dict[str, Any] = {"img_size": SIZES[model]} if model in SIZES else {}
        torch.save(timm.create_model(MODELS[model], **size).state_dict(), path)
    return path


@contextlib.contextmanager
def _scratch_model(model: ir.Model) -> Generator[Path, None, None]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path)
        yield path


def _models(suite: Suite) -> Iterator[tuple[str, str]]:
    for precision in ("FP16", "INT8", "2:4 INT8", "2:4 FP16", "FP32"):
        for model in MODELS:
            if suite.wants(f"{model} {precision}"):
                yield model, precision


def _file(model: str, precision: str) -> str:
    return f"{model}-{precision}".replace(" ", "-").replace(":", "")


def _asked() -> Suite:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("gpu-suite"), help="plans, and the report")
    parser.add_argument("--target", help="GPU; by default this machine's, else a100")
    parser.add_argument("--only", default="*", help="shell pattern on names such as 'ViT-S qkv b8*' or 'DeiT-S INT8'")
    parser.add_argument("--build-only", action="store_true", help="build plans and references, run nothing")
    parser.add_argument("--minutes", type=float, default=10.0, help="stop starting things after so long")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    target = _target_here() if asked.target is None else find_target(asked.target)
    return Suite(
        folder=asked.folder,
        target=target,
        only=asked.only,
        build_only=asked.build_only,
        start=start,
        deadline=start + 60 * asked.minutes,
    )


def _target_here() -> Target:
    gpu = find_gpu()
    if isinstance(gpu, Gpu):
        for target in load_targets():
            if target.compute_capability == gpu.compute_capability:
                return target
    return find_target("a100")


def _text(report: SuiteReport) -> bytes:
    return markdown_from_report(report).encode()


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
