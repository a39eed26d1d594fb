"""Engines for every target of a request: what can be built here is, what can't says why and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gpusq_deploy.artifacts import (
    ENGINES,
    MODEL,
    NO_OPTIONS,
    BatchRange,
    BuiltEngine,
    EngineOptions,
    QuantPlan,
    Receipt,
    SkippedTarget,
    SparsityReport,
    digest_of_bytes,
)
from gpusq_deploy.bundle import built_layers, recorded
from gpusq_deploy.compile.target_checks import gemm_needs
from gpusq_deploy.engines import (
    BackendName,
    BuildSettings,
    EngineBuild,
    EngineBuildOptions,
    Gpu,
    Target,
    build_engine,
    cache_file,
    choose_backend,
    find_gpu,
    load_api,
    padding_notes,
    read_cache,
    texts_from_options,
    totals,
    write_cache,
)
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import text_of


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """What is to be built from `folder/model.onnx` into `folder/engines`; `name` is the bundle's final name.

    `remembered` is what the manifest says of `options`; None: the same.
    """

    folder: Path
    name: str
    plan: QuantPlan
    sparsity: SparsityReport
    batch: BatchRange
    targets: Sequence[Target]
    reporter: Reporter
    options: EngineOptions = NO_OPTIONS
    remembered: EngineOptions | None = None


def build_engines(request: EngineRequest) -> tuple[tuple[BuiltEngine, ...], tuple[SkippedTarget, ...]]:
    """Build for each target, in order.

    Raises:
        GpusqError: A target that could be built here failed.
    """
    built: list[BuiltEngine] = []
    skipped: list[SkippedTarget] = []
    # What the bundle remembers, the command for the device needn't say.
    remembered = request.options if request.remembered is None else request.remembered
    unsaid = texts_from_options(request.options, base=remembered)
    for target in request.targets:
        choice = choose_backend(target, bundle=request.name, options=unsaid)
        if isinstance(choice, SkippedTarget):
            request.reporter.say(f"no engine for {target.name} here; on the device run: {choice.command}")
            skipped.append(choice)
        else:
            how = "ahead of time, no GPU" if choice.name in target.ahead_of_time else "on its own GPU"
            request.reporter.say(f"building {target.name} with {choice.name} ({how})")
            built.append(_built(request, target, choice.name))
    return tuple(built), tuple(skipped)


def with_engines(
    receipt: Receipt, engines: Sequence[BuiltEngine], skipped: Sequence[SkippedTarget], reporter: Reporter
) -> Receipt:
    """A bundle's receipt after further engines: those that were built replace older ones for their targets.

    An engine stays where none could be built in its place: it is as good as before.
    """
    fresh = {engine.target for engine in engines}
    kept = [engine for engine in receipt.engines if engine.target not in fresh]
    held = {engine.target for engine in kept}
    missing = [entry for entry in skipped if entry.target not in held]
    for entry in skipped:
        if entry.target in held:
            reporter.say(f"kept the {entry.target} engine that the bundle has")
    told = {*fresh, *(entry.target for entry in missing)}
    return msgspec.structs.replace(
        receipt,
        engines=(*kept, *engines),
        skipped=(*(entry for entry in receipt.skipped if entry.target not in told), *missing),
    )


def _built(request: EngineRequest, target: Target, backend: BackendName) -> BuiltEngine:
    settings = BuildSettings(batch=request.batch, sparse=request.plan.sparse_asked, options=request.options)
    cache = _timing_cache(backend, settings)
    timings = None if cache is None else read_cache(cache, required=request.options.error_on_cache_miss)
    options = EngineBuildOptions(
        backend=backend,
        progress=request.reporter.progress,
        timing_cache=timings,
        # The folder's own name is gone when an error is read.
        place=f"{request.name}/{MODEL}",
    )
    build = build_engine(request.folder / MODEL, target, settings, options)
    if cache is not None and build.timing_cache is not None:
        write_cache(cache, build.timing_cache)
        request.reporter.say(f"wrote the timing cache {cache} ({len(build.timing_cache)} bytes)")
    file = f"{ENGINES}/{target.name}.plan"
    path = request.folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(build.engine_bytes)
    return _entry(request, target, build, file)


def _timing_cache(backend: BackendName, settings: BuildSettings) -> Path | None:
    folder, gpu = settings.options.timing_cache, find_gpu()
    if folder is None or not isinstance(gpu, Gpu):
        return None
    return cache_file(Path(folder), backend, load_api(backend).__version__, gpu.name, settings)


def _entry(request: EngineRequest, target: Target, build: EngineBuild, file: str) -> BuiltEngine:
    entry = BuiltEngine(
        target=target.name,
        backend=build.backend,
        backend_version=build.version,
        source=build.source,
        gpus=target.gpus,
        compute_capability=target.compute_capability,
        engine_file=file,
        engine_bytes=len(build.engine_bytes),
        engine_digest=digest_of_bytes(build.engine_bytes),
        build_seconds=round(build.seconds, 3),
        executed=False,
        totals=totals(build.layers),
        layers=built_layers(request.plan, build.layers, request.sparsity, notes=build.notes),
        engine_layers=build.layers,
        notes=(
            *build.notes,
            *padding_notes(target, gemm_needs(request.plan)),
            *(f"kept in FP32, since FP16 can't hold it: {text_of(tensor)}" for tensor in request.plan.wide),
            *target.unknowns,
        ),
        options=request.options.portable,
    )
    return recorded(entry, target, request.sparsity.layers, request.plan.layers)
