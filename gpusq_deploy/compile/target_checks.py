"""Refuse what no target can run, before any work is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpusq_deploy.artifacts import (
    NO_OPTIONS,
    OPSETS,
    EngineOptions,
    Precision,
    QuantizedPrecision,
    QuantPlan,
    Recipe,
    SkippedTarget,
    load_recipe,
)
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.engines import (
    GemmNeed,
    Gpu,
    Target,
    check_request,
    choose_backend,
    find_gpu,
    load_api,
    load_targets,
    opset_problem,
    option_problems,
    release_here,
    releases_for,
)
from gpusq_deploy.errors import GpusqError


def require_possible(plan: QuantPlan, targets: Sequence[Target]) -> None:
    """Refuse what the targets' hardware can't do, all problems at once.

    Raises:
        GpusqError: At least one layer asks for a type or for sparse kernels that a target lacks.
    """
    problems = [problem for target in targets for problem in check_request(target, gemm_needs(plan))]
    if problems:
        raise GpusqError("; ".join(problems), place="--target", hint="choose another target or precision")


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetDemands:
    """What a build asks of every target, as far as that is known before any work."""

    options: EngineOptions = NO_OPTIONS
    types: frozenset[Precision] = frozenset()
    sparse: bool = False
    opset: int | None = None


def demands_of(plan: QuantPlan, options: EngineOptions, *, opset: int) -> TargetDemands:
    """What further engines of a bundle ask of their targets."""
    types: frozenset[Precision] = frozenset({plan.float_type, *(need.precision for need in gemm_needs(plan))})
    return TargetDemands(options=options, types=types, sparse=plan.sparse_asked, opset=opset)


def require_reachable(asked: TargetDemands, targets: Sequence[Target]) -> None:
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
        GpusqError: See `BuildRequest.require_recipe`, `require_reachable` and `require_types`; or the opset is too low
            for the recipe.
    """
    recipe = load_recipe(None) if request.recipe is None else request.recipe
    request.require_recipe(recipe)
    # INT4 weights are unpacked, and multiply in the float type.
    made: frozenset[QuantizedPrecision] = recipe.precisions if request.quantize else frozenset()
    types: frozenset[Precision] = frozenset({request.float_type, *(made - {"int4"})})
    require_reachable(
        TargetDemands(options=request.engine, types=types, sparse=request.sparse, opset=request.opset), request.targets
    )
    if request.quantize:
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


def _out_of_reach(asked: TargetDemands, target: Target) -> Iterator[str]:
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


def gemm_needs(plan: QuantPlan) -> list[GemmNeed]:
    """INT4 weights are unpacked and multiply in the float type, which is what the hardware must have."""
    return [
        GemmNeed(
            layer=layer.layer,
            n=layer.n,
            k=layer.k,
            precision=plan.float_type if layer.precision == "int4" else layer.precision,
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
