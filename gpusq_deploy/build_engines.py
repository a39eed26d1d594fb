"""Engines for every target of a request: what can be built here is, what can't says why and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpusq_deploy.artifacts.base import digest_of_bytes
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.plan import Plan
from gpusq_deploy.artifacts.receipt import BuiltEngine, SkippedTarget
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.bundle import ENGINES, MODEL
from gpusq_deploy.engines.api import BackendName
from gpusq_deploy.engines.builder import BuildOptions, BuildSettings, EngineBuild, build_engine
from gpusq_deploy.engines.layers import totals
from gpusq_deploy.engines.runtimes import choose_backend
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.receipt import built_layers
from gpusq_deploy.request import Reporter
from gpusq_deploy.targets import GemmNeed, Target, check_request, padding_notes


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """What is to be built from `folder/model.onnx` into `folder/engines`; `name` is the bundle's final name."""

    folder: Path
    name: str
    plan: Plan
    sparsity: SparsityReport
    batch: BatchRange
    targets: Sequence[Target]
    reporter: Reporter


def require_possible(plan: Plan, targets: Sequence[Target]) -> None:
    """Refuse what the targets' hardware can't do, all problems at once.

    Raises:
        GpusqError: At least one layer asks for a type or for sparse kernels that a target lacks.
    """
    problems = [problem for target in targets for problem in check_request(target, _needs(plan))]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise GpusqError("; ".join(problems[:5]) + more, place="--target", hint="choose another target or precision")


def build_engines(request: EngineRequest) -> tuple[tuple[BuiltEngine, ...], tuple[SkippedTarget, ...]]:
    """Build for each target, in order.

    Raises:
        GpusqError: A target that could be built here failed.
    """
    built: list[BuiltEngine] = []
    skipped: list[SkippedTarget] = []
    for target in request.targets:
        choice = choose_backend(target, bundle=request.name)
        if isinstance(choice, SkippedTarget):
            request.reporter.say(
                f"no engine for {target.name} here: {choice.reason}; on the device run: {choice.command}"
            )
            skipped.append(choice)
        else:
            request.reporter.say(f"building the engine for {target.name}: {choice.reason}")
            built.append(_built(request, target, choice.name))
    return tuple(built), tuple(skipped)


def _built(request: EngineRequest, target: Target, backend: BackendName) -> BuiltEngine:
    settings = BuildSettings(batch=request.batch, sparse=request.plan.sparse_asked)
    options = BuildOptions(backend=backend, progress=request.reporter.progress)
    build = build_engine(request.folder / MODEL, target, settings, options)
    file = f"{ENGINES}/{target.name}.plan"
    path = request.folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(build.plan)
    return _entry(request, target, build, file)


def _entry(request: EngineRequest, target: Target, build: EngineBuild, file: str) -> BuiltEngine:
    return BuiltEngine(
        target=target.name,
        backend=build.backend,
        backend_version=build.version,
        source=build.source,
        gpus=target.gpus,
        compute_capability=target.compute_capability,
        plan_file=file,
        plan_bytes=len(build.plan),
        plan_digest=digest_of_bytes(build.plan),
        build_seconds=round(build.seconds, 3),
        executed=False,
        totals=totals(build.layers),
        layers=built_layers(request.plan, build.layers, request.sparsity),
        engine_layers=build.layers,
        notes=(*build.notes, *padding_notes(target, _needs(request.plan)), *target.unknowns),
    )


def _needs(plan: Plan) -> list[GemmNeed]:
    return [
        GemmNeed(layer=layer.layer, n=layer.n, k=layer.k, precision=layer.precision, sparse=layer.sparse)
        for layer in plan.layers
    ]
