"""The GPU suite's models: bundles and references, built anywhere, and run on the GPU. Unverified on a GPU so far."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpusq_deploy.artifacts.base import read_value, write_whole, written_whole
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.plan import Plan
from gpusq_deploy.artifacts.receipt import Receipt
from gpusq_deploy.benchmarks.gpu_results import ModelResult, Outcome
from gpusq_deploy.benchmarks.gpu_runs import (
    AHEAD,
    BACKENDS,
    Array,
    Failure,
    Suite,
    attempt,
    build_or_say,
    measured,
    say,
)
from gpusq_deploy.benchmarks.reference import LEAST_DB
from gpusq_deploy.bundle import ENGINES, MODEL, PLAN, RECEIPT
from gpusq_deploy.engines.api import BackendName, find_api
from gpusq_deploy.engines.builder import BuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.runtimes import open_session
from gpusq_deploy.engines.session import Session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.numerics.error import sqnr_db
from gpusq_deploy.targets import Target

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
_RANGE = BatchRange(minimum=1, optimum=8, maximum=128)
REFERENCE_SAMPLES = 2


def build_models(suite: Suite) -> None:
    """A bundle for every model and precision that has none, with random weights, and outputs by ONNX Runtime.

    Where nobody builds the target's plans ahead of time, the bundles have none. Plans of others that can build here lie
    beside the bundles; a failure is said, and met again when the model is to run.

    Raises:
        GpusqError: A bundle couldn't be built; the command's own words are above.
    """
    folder = suite.folder / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for model, precision in _models(suite):
        bundle = _bundle(suite, model, precision)
        if not bundle.exists():
            say(f"building {model} {precision}")
            _build(suite, model, precision, bundle)
        # The bundle comes first, so a build that was killed may have left it alone.
        if not bundle.with_suffix(".npz").exists():
            save_reference(bundle)
        for backend in BACKENDS:
            if _stored(suite, bundle, backend) is None and not suite.unbuildable(backend):
                build_or_say(functools.partial(_build_own, suite, bundle, backend))


def run_models(suite: Suite) -> Iterator[ModelResult]:
    """Every model in every precision, on one backend after the other, at every batch size."""
    for model, precision in _models(suite):
        bundle = _bundle(suite, model, precision)
        for backend in BACKENDS:
            plan, refusal = _plan(suite, bundle, backend)
            with _opened(plan, backend, refusal) as session:
                for batch in BATCHES:
                    decibels, outcome = _batch_outcome(suite, session, bundle, batch)
                    yield ModelResult(
                        model=model,
                        precision=precision,
                        backend=backend,
                        batch=batch,
                        sqnr_db=decibels,
                        outcome=outcome,
                    )


def save_reference(bundle: Path) -> None:
    """Inputs and ONNX Runtime's outputs of a bundle's model, beside the bundle, whole or not at all."""
    with contextlib.closing(open_session(bundle / MODEL, "onnxruntime")) as session:
        shape = (REFERENCE_SAMPLES, *session.inputs[0].shape[1:])
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        y = session.run({session.inputs[0].name: x})[session.outputs[0].name]
    # By a stream: to a name numpy would add its own ending.
    with written_whole(bundle.with_suffix(".npz")) as temporary, temporary.open("wb") as stream:
        np.savez(stream, x=x, y=y)


def _build(suite: Suite, model: str, precision: str, bundle: Path) -> None:
    checkpoint = _checkpoint(bundle.parent, model)
    command = [sys.executable, "-m", "gpusq_deploy", "build", str(checkpoint), "--arch", f"timm:{MODELS[model]}"]
    command += ["--arch-arg", f"img_size={SIZES[model]}"] if model in SIZES else []
    command += [*PRECISIONS[precision], "--target", suite.target.name]
    command += ["--batch", "1:8:128", "--out", str(bundle)]
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
        raise GpusqError(f"{model} {precision} couldn't be built", place=str(bundle), hint="--only leaves it out")


def _plan(suite: Suite, bundle: Path, backend: BackendName) -> tuple[Path, str]:
    """A backend's plan of a model, and why it can't be run; empty where it can. TensorRT's may be built for it."""
    refusal = suite.refusal(backend)
    plan = _stored(suite, bundle, backend)
    if plan is not None:
        return plan, refusal or _unready(bundle)
    if backend == AHEAD:
        return bundle, refusal or suite.not_built("its plan")
    refusal = refusal or _unready(bundle)
    if refusal:
        return bundle, refusal
    made = attempt(lambda: _build_own(suite, bundle, backend))
    return (bundle, f"building failed: {made.why}") if isinstance(made, Failure) else (made, "")


def _stored(suite: Suite, bundle: Path, backend: BackendName) -> Path | None:
    """A backend's plan for the target: the bundle's, where that backend built it, or one beside the bundle."""
    plan = bundle / ENGINES / f"{suite.target.name}.plan"
    if plan.exists() and _built_by(bundle, suite.target) == backend:
        return plan
    own = _own(suite, bundle, backend)
    return own if own.exists() else None


def _own(suite: Suite, bundle: Path, backend: BackendName) -> Path:
    """Where a backend's plan lies that isn't the bundle's: of the installed version, for plans of another don't run."""
    api = find_api(backend)
    version = "" if isinstance(api, str) else f"-{api.__version__}"
    return bundle.with_suffix(f".{suite.target.name}.{backend}{version}.plan")


def _built_by(bundle: Path, target: Target) -> BackendName | None:
    """On the GPU itself gpusq-build takes tensorrt where it is installed, and each runs its own plans alone."""
    try:
        engines = read_value(bundle / RECEIPT, Receipt).engines
    except GpusqError:
        return None
    names = {engine.backend for engine in engines if engine.target == target.name}
    return next((name for name in BACKENDS if name in names), None)


def _unready(bundle: Path) -> str:
    """What a run needs and isn't there; empty where all is."""
    for path, what in ((bundle / MODEL, "its model"), (bundle.with_suffix(".npz"), "its reference")):
        if not path.exists():
            return f"{what} wasn't built: --build-only does"
    return ""


def _build_own(suite: Suite, bundle: Path, backend: BackendName) -> Path:
    """A plan of the model that the bundle's own plans are built from."""
    say(f"building {bundle.stem} with {backend}")
    settings = BuildSettings(batch=_RANGE, sparse=read_value(bundle / PLAN, Plan).sparse_asked)
    built = build_engine(bundle / MODEL, suite.target, settings, BuildOptions(backend=backend))
    plan = _own(suite, bundle, backend)
    write_whole(plan, built.plan)
    return plan


@contextlib.contextmanager
def _opened(plan: Path, backend: BackendName, refusal: str) -> Generator[Session | str, None, None]:
    """A model's session, opened once for all batch sizes, for a plan may be compiled while it is loaded; or why not."""
    if refusal:
        yield refusal
        return
    session = attempt(lambda: open_session(plan, backend))
    if isinstance(session, Failure):
        yield f"failed: {session.why}"
        return
    try:
        yield session
    finally:
        # After a CUDA error nothing can be freed; what it spoilt has been told, and the rest must be too.
        try:
            session.close()
        except GpusqError as error:
            say(f"{plan}: {error.what}")


def _batch_outcome(suite: Suite, session: Session | str, bundle: Path, batch: int) -> tuple[float | None, Outcome]:
    if isinstance(session, str):
        return None, Outcome(why_not=session)
    if suite.late:
        return None, Outcome(why_not=suite.late)
    found = attempt(functools.partial(_run_model, session, bundle, batch))
    return (None, found.outcome) if isinstance(found, Failure) else found


def _run_model(session: Session, bundle: Path, batch: int) -> tuple[float, Outcome]:
    samples, wanted = _reference(bundle.with_suffix(".npz"), batch)
    feeds = {session.inputs[0].name: samples}
    decibels = sqnr_db(wanted, session.run(feeds)[session.outputs[0].name])
    if not decibels >= LEAST_DB:
        return decibels, Outcome(why_not=f"not timed, for it is wrong: {decibels:.1f} dB to ONNX Runtime's outputs")
    return decibels, measured(session, feeds, error=None)


def _reference(path: Path, batch: int) -> tuple[Array, Array]:
    """Its samples and outputs over and over, up to a batch.

    Raises:
        GpusqError: It can't be read.
    """
    try:
        with np.load(path) as stored:
            x: Array = stored["x"]
            y: Array = stored["y"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise GpusqError("its reference can't be read", place=str(path), hint="--build-only makes a new one") from error
    return np.resize(x, (batch, *x.shape[1:])), np.resize(y, (batch, *y.shape[1:]))


def _checkpoint(folder: Path, model: str) -> Path:
    import timm
    import torch

    path = folder / f"{model}.pt"
    if not path.exists():
        torch.manual_seed(0)
        size: dict[str, Any] = {"img_size": SIZES[model]} if model in SIZES else {}
        with written_whole(path) as temporary:
            torch.save(timm.create_model(MODELS[model], **size).state_dict(), temporary)
    return path


def _models(suite: Suite) -> Iterator[tuple[str, str]]:
    for precision in ("FP16", "INT8", "2:4 INT8", "2:4 FP16", "FP32"):
        for model in MODELS:
            if suite.wants(f"{model} {precision}"):
                yield model, precision


def _bundle(suite: Suite, model: str, precision: str) -> Path:
    name = f"{model}-{precision}".replace(" ", "-").replace(":", "")
    return suite.folder / "models" / f"{name}.gpusq"
