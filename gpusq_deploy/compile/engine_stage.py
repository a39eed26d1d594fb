"""Engines for every target of a request: what can be built here is, what can't says why and how."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import (
    ENGINES,
    MODEL,
    OPSETS,
    BatchRange,
    BuiltEngine,
    CostEstimate,
    EngineLayer,
    EngineOptions,
    LayerCost,
    Plan,
    Precision,
    QuantizedPrecision,
    Receipt,
    Recipe,
    SkippedTarget,
    SparsityReport,
    digest_of_bytes,
    load_recipe,
)
from gpusq_deploy.bundle import built_layers, layer_cost_text, recorded
from gpusq_deploy.compile.request import NO_OPTIONS, BuildRequest
from gpusq_deploy.engines import (
    BackendName,
    BuildOptions,
    BuildSettings,
    EngineBuild,
    GemmNeed,
    Gpu,
    Target,
    build_engine,
    cache_file,
    check_request,
    choose_backend,
    compared,
    find_gpu,
    graph_cost,
    layer_shares,
    layers_at,
    load_api,
    load_targets,
    opset_problem,
    option_problems,
    padding_notes,
    read_cache,
    release_here,
    releases_for,
    texts_from_options,
    totals,
    write_cache,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import CastRemainder, keep_wide, known_tensors, run_passes, save_model, scratch_folder
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import text_of


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRequest:
    """What is to be built from `folder/model.onnx` into `folder/engines`; `name` is the bundle's final name.

    `remembered` is what the manifest says of `options`; None: the same.
    """

    folder: Path
    name: str
    plan: Plan
    sparsity: SparsityReport
    batch: BatchRange
    targets: Sequence[Target]
    reporter: Reporter
    options: EngineOptions = NO_OPTIONS
    remembered: EngineOptions | None = None


def require_possible(plan: Plan, targets: Sequence[Target]) -> None:
    """Refuse what the targets' hardware can't do, all problems at once.

    Raises:
        GpusqError: At least one layer asks for a type or for sparse kernels that a target lacks.
    """
    problems = [problem for target in targets for problem in check_request(target, _needs(plan))]
    if problems:
        raise GpusqError("; ".join(problems), place="--target", hint="choose another target or precision")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a build asks of every target, as far as that is known before any work."""

    options: EngineOptions = NO_OPTIONS
    types: frozenset[Precision] = frozenset()
    sparse: bool = False
    opset: int | None = None


def asked_by(plan: Plan, options: EngineOptions, *, opset: int) -> Asked:
    """What further engines of a bundle ask of their targets."""
    types: frozenset[Precision] = frozenset({plan.remainder, *(need.precision for need in _needs(plan))})
    return Asked(options=options, types=types, sparse=plan.sparse_asked, opset=opset)


def require_reachable(asked: Asked, targets: Sequence[Target]) -> None:
    """Refuse, before any work, what a target can't do or none of its builders can; all problems of all targets at once.

    Where the plan is to be made on the device, its builder's release isn't known: any that can do it will do.

    Raises:
        GpusqError: At least one thing is out of a target's reach.
    """
    problems = [f"{target.name}: {problem}" for target in targets for problem in _out_of_reach(asked, target)]
    if problems:
        hint = "leave these out, or choose other targets"
        if any(asked.types - set(target.dtypes) for target in targets):
            hint += _able(asked.types)
        raise GpusqError("; ".join(problems), place="the options and --target", hint=hint)


def expressible_recipe(request: BuildRequest) -> Recipe:
    """The recipe, if the targets, their builders and the opset can do what is asked: that is told before any work.

    Raises:
        GpusqError: See `load_recipe`, `BuildRequest.require_recipe`, `require_reachable` and `require_types`; or the
            opset is too low for the recipe.
    """
    recipe = load_recipe(request.recipe)
    request.require_recipe(recipe)
    # INT4 weights are unpacked, and multiply in the remainder's type.
    made: frozenset[QuantizedPrecision] = recipe.precisions if request.int8 else frozenset()
    types: frozenset[Precision] = frozenset({request.remainder, *(made - {"int4"})})
    require_reachable(
        Asked(options=request.engine, types=types, sparse=request.sparse, opset=request.opset), request.targets
    )
    if request.int8:
        require_types(recipe, request.targets)
    needed = max((OPSETS[precision] for precision in made), default=0)
    if request.opset < needed:
        raise GpusqError(
            f"recipe {recipe.name} makes layers {', '.join(sorted(made))}, which ONNX has from opset {needed} on, not "
            f"in {request.opset}",
            place="--opset",
            hint=f"--opset {needed}, or leave it out",
        )
    return recipe


def _out_of_reach(asked: Asked, target: Target) -> Iterator[str]:
    for kind in sorted(asked.types - set(target.dtypes)):
        yield f"it has no {kind} tensor cores; it has {', '.join(target.dtypes)}"
    if asked.sparse and not asked.types & set(target.sparse_dtypes):
        yield f"sparse: it has no 2:4 sparse kernels for {' or '.join(sorted(asked.types))}"
    choice = choose_backend(target, bundle="")
    if isinstance(choice, SkippedTarget):
        rows = [row for backend in target.on_device for row in releases_for(target, backend)]
        yield from min([option_problems(asked.options, row, driver=True) for row in rows], key=len)
    else:
        rows = [release_here(choice.name, load_api(choice.name))]
        yield from option_problems(asked.options, rows[0], driver=isinstance(find_gpu(), Gpu))
    if asked.opset is not None and (problem := opset_problem(asked.opset, rows)):
        yield problem


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


def estimate_cost(request: EngineRequest, engines: Sequence[BuiltEngine], float_model: ir.Model) -> CostEstimate | None:
    """What quantising does to kernels and bytes moved, against the model as it is: a prediction, said where it is bad.

    Both graphs are built for the optimal batch size, because the layer list of a dynamic batch hides sizes: one or two
    seconds each for a ViT-S. Only a builder that needs no device is worth that; on a device it would be minutes.

    Args:
        request: What the engines were built from.
        engines: Those that were built.
        float_model: The float32 graph before quantisation; not changed.

    Returns:
        None where nothing is quantised. A comparison that fails says why in its note: the engines are good without it.
    """
    if all(layer.weight is None for layer in request.plan.layers):
        return None
    what = " and ".join(sorted({layer.precision.upper() for layer in request.plan.layers if layer.weight is not None}))
    ahead = {target.name: target for target in request.targets if target.ahead_of_time}
    first = next((engine for engine in engines if engine.target in ahead and engine.backend == "tensorrt-rtx"), None)
    if first is None:
        # Further engines may come later, and this must stay true.
        return _not_compared(what, "when the bundle was made, no engine was built ahead of time")
    target, batch = ahead[first.target], request.batch.optimum
    request.reporter.say(f"building the same model without {what} to compare kernels ({target.name}, batch {batch})")
    try:
        found = _comparison(request, first, float_model, target, what)
    except (GpusqError, OSError) as error:
        why = error.what if isinstance(error, GpusqError) else str(error)
        request.reporter.say(f"warning: the comparison failed: {why}")
        return _not_compared(what, why)
    return found


def _not_compared(what: str, why: str) -> CostEstimate:
    note = f"not compared with the graph without {what}: {why}"
    return CostEstimate(target=None, built=None, unquantised=None, note=note, what=what)


def _comparison(
    request: EngineRequest, engine: BuiltEngine, float_model: ir.Model, target: Target, what: str
) -> CostEstimate:
    batch = request.batch.optimum
    built = (
        engine.engine_layers
        if request.batch.static
        else layers_at(request.folder / MODEL, target, batch, backend="tensorrt-rtx")
    )
    with scratch_folder() as scratch:
        path = Path(scratch) / MODEL
        # Smoothing may have made other tensors than this graph has.
        names = known_tensors(float_model.graph)
        whole = keep_wide(request.plan)
        wide = replace(whole, tensors=tuple(name for name in whole.tensors if name in names))
        save_model(run_passes(float_model, [wide, CastRemainder(request.plan.remainder)]), path)
        other = layers_at(path, target, batch, backend="tensorrt-rtx")
    return CostEstimate(
        target=target.name,
        built=graph_cost(built, batch=batch),
        unquantised=graph_cost(other, batch=batch),
        note=f"predicted from tensorrt-rtx's layer lists for {target.name} alone; nothing was timed",
        what=what,
        layers=_by_layer(request.plan, built, other, target),
    )


def with_estimates(plan: Plan, cost: CostEstimate | None) -> Plan:
    """The plan with what INT8 is predicted to change in each layer, for the one target that it was predicted for."""
    said = {} if cost is None else {layer.layer: f"{cost.target}: {layer_cost_text(layer)}" for layer in cost.layers}
    layers = tuple(msgspec.structs.replace(layer, estimate=said.get(layer.layer)) for layer in plan.layers)
    return msgspec.structs.replace(plan, layers=layers)


def _by_layer(
    plan: Plan, built: Sequence[EngineLayer], other: Sequence[EngineLayer], target: Target
) -> tuple[LayerCost, ...]:
    nodes = {layer.node: layer.layer for layer in plan.layers}
    asked = [layer.layer for layer in plan.layers if layer.precision == "int8"]
    ours, theirs = (layer_shares(side, nodes, target.peaks) for side in (built, other))
    return tuple(compared(ours, theirs, asked))


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
        request.reporter.say(f"wrote the timing cache {cache} ({len(build.timing_cache)} bytes)")
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
    entry = BuiltEngine(
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
        options=request.options.portable,
    )
    return recorded(entry, target, request.sparsity.layers, request.plan.layers)


def _needs(plan: Plan) -> list[GemmNeed]:
    """INT4 weights are unpacked and multiply in the remainder's type, which is what the hardware must have."""
    return [
        GemmNeed(
            layer=layer.layer,
            n=layer.n,
            k=layer.k,
            precision=plan.remainder if layer.precision == "int4" else layer.precision,
            sparse=layer.sparse,
        )
        for layer in plan.layers
    ]


def require_types(recipe: Recipe, targets: Sequence[Target]) -> None:
    """Refuse, before any work, targets whose tensor cores lack a type that the recipe makes layers of.

    Raises:
        GpusqError: Names each such target, with the types that it has.
    """
    problems = [
        f"recipe {recipe.name} makes layers {name}, and {target.name} has no {name} tensor cores; "
        f"it has {', '.join(target.dtypes)}"
        for target in targets
        for name in sorted(recipe.precisions - {"int4"})
        if name not in target.dtypes
    ]
    if problems:
        hint = f"choose another recipe, or other targets{_able(recipe.precisions - {'int4'})}"
        raise GpusqError("; ".join(problems), place="--target", hint=hint)


def _able(types: frozenset[Precision]) -> str:
    able = ", ".join(target.name for target in load_targets() if types <= {*target.dtypes})
    return f"; {' and '.join(sorted(types))}: {able}" if able else ""
