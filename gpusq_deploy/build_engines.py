"""Engines for every target of a request: what can be built here is, what can't says why and how."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.artifacts.base import digest_of_bytes
from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.artifacts.plan import Plan
from gpusq_deploy.artifacts.receipt import BuiltEngine, CostEstimate, SkippedTarget
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.bundle import ENGINES, MODEL
from gpusq_deploy.engines.api import BackendName, load_api
from gpusq_deploy.engines.builder import BuildOptions, EngineBuild, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.cost import built_cost, graph_cost
from gpusq_deploy.engines.gpu import Gpu, find_gpu
from gpusq_deploy.engines.layers import totals
from gpusq_deploy.engines.releases import RELEASES, option_problems, release_of
from gpusq_deploy.engines.runtimes import choose_backend
from gpusq_deploy.engines.timing_cache import cache_file, read_cache, write_cache
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.passes.base import run_passes
from gpusq_deploy.passes.cast_remainder import CastRemainder
from gpusq_deploy.passes.keep_wide import keep_wide, known_tensors
from gpusq_deploy.receipt import built_layers, cost_text
from gpusq_deploy.request import NO_OPTIONS, Reporter
from gpusq_deploy.targets import GemmNeed, Target, check_request, padding_notes
from gpusq_deploy.wide import text_of


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
    options: EngineOptions = NO_OPTIONS


def require_possible(plan: Plan, targets: Sequence[Target]) -> None:
    """Refuse what the targets' hardware can't do, all problems at once.

    Raises:
        GpusqError: At least one layer asks for a type or for sparse kernels that a target lacks.
    """
    problems = [problem for target in targets for problem in check_request(target, _needs(plan))]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise GpusqError("; ".join(problems[:5]) + more, place="--target", hint="choose another target or precision")


def require_options(options: EngineOptions, targets: Sequence[Target]) -> None:
    """Refuse, before any work, engine options that no builder of a target can do; all problems at once.

    Where the plan is to be made on the device, its builder's release isn't known: any that can do it will do.

    Raises:
        GpusqError: At least one option is out of a target's reach.
    """
    problems: list[str] = []
    for target in targets:
        choice = choose_backend(target, bundle="")
        if isinstance(choice, SkippedTarget):
            rows = [row for row in RELEASES if row.backend in target.on_device]
            found = min([option_problems(options, row, driver=True) for row in rows], key=len)
        else:
            version = load_api(choice.name).__version__
            release = release_of(choice.name, version)
            found = option_problems(options, release, driver=isinstance(find_gpu(), Gpu))
        problems += [f"{target.name}: {problem}" for problem in found]
    if problems:
        raise GpusqError("; ".join(problems), place="--engine-option", hint="leave these out, or choose other targets")


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


def estimate_cost(request: EngineRequest, engines: Sequence[BuiltEngine], float_model: ir.Model) -> CostEstimate | None:
    """What INT8 does to kernels and bytes moved, against the same model without it: a prediction, said where it is bad.

    Both graphs are built for the optimal batch size, because the layer list of a dynamic batch hides sizes: one or two
    seconds each for a ViT-S. Only a builder that needs no device is worth that; on a device it would be minutes.

    Args:
        request: What the engines were built from.
        engines: Those that were built.
        float_model: The float32 graph before quantisation; not changed.

    Returns:
        None where nothing is INT8.

    Raises:
        GpusqError: The float graph can't be cast or built.
    """
    if not any(layer.precision == "int8" for layer in request.plan.layers):
        return None
    ahead = {target.name: target for target in request.targets if target.ahead_of_time}
    first = next((engine for engine in engines if engine.target in ahead and engine.backend == "tensorrt-rtx"), None)
    if first is None:
        note = "not compared with the graph without INT8: no engine was built ahead of time"
        return CostEstimate(target=None, built=None, unquantised=None, note=note)
    target, batch = ahead[first.target], request.batch.optimum
    request.reporter.say(f"comparing with the graph without INT8, for {target.name} at batch {batch}")
    if request.batch.static:
        built = graph_cost(first.engine_layers, batch=batch)
    else:
        built = built_cost(request.folder / MODEL, target, batch, backend="tensorrt-rtx")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL
        # Smoothing may have made other tensors than this graph has.
        names = known_tensors(float_model.graph)
        whole = keep_wide(request.plan)
        wide = replace(whole, tensors=tuple(name for name in whole.tensors if name in names))
        save_model(run_passes(float_model, [wide, CastRemainder(request.plan.remainder)]), path)
        unquantised = built_cost(path, target, batch, backend="tensorrt-rtx")
    note = f"predicted from tensorrt-rtx's layer lists for {target.name} alone; nothing was timed"
    found = CostEstimate(target=target.name, built=built, unquantised=unquantised, note=note)
    if found.worse:
        request.reporter.say(f"warning: INT8 may not pay: {cost_text(found)}")
    return found


def _built(request: EngineRequest, target: Target, backend: BackendName) -> BuiltEngine:
    settings = BuildSettings(batch=request.batch, sparse=request.plan.sparse_asked, options=request.options)
    cache = _timing_cache(backend, settings)
    timings = None if cache is None else read_cache(cache, required=request.options.error_on_cache_miss)
    options = BuildOptions(
        backend=backend,
        progress=request.reporter.progress,
        timing_cache=timings,
        # The folder's own name is gone when an error is read.
        place=f"{request.name}/{MODEL}",
    )
    build = build_engine(request.folder / MODEL, target, settings, options)
    if cache is not None and build.timing_cache is not None:
        write_cache(cache, build.timing_cache)
        request.reporter.say(f"kept {len(build.timing_cache)} bytes of kernel timings in {cache}")
    file = f"{ENGINES}/{target.name}.plan"
    path = request.folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(build.plan)
    return _entry(request, target, build, file)


def _timing_cache(backend: BackendName, settings: BuildSettings) -> Path | None:
    folder, gpu = settings.options.timing_cache, find_gpu()
    if folder is None or not isinstance(gpu, Gpu):
        return None
    return cache_file(Path(folder), backend, load_api(backend).__version__, gpu.name, settings)


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
        layers=built_layers(request.plan, build.layers, request.sparsity, notes=build.notes),
        engine_layers=build.layers,
        notes=(
            *build.notes,
            *padding_notes(target, _needs(request.plan)),
            *(f"kept in FP32, since FP16 can't hold it: {text_of(tensor)}" for tensor in request.plan.wide),
            *target.unknowns,
        ),
    )


def _needs(plan: Plan) -> list[GemmNeed]:
    return [
        GemmNeed(layer=layer.layer, n=layer.n, k=layer.k, precision=layer.precision, sparse=layer.sparse)
        for layer in plan.layers
    ]
