"""Predict what a build gains, by compiling the float graph beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import (
    MODEL,
    BuiltEngine,
    CostEstimate,
    EngineLayer,
    KernelWork,
    LayerCost,
    PredictedTimes,
    QuantPlan,
    SkippedTarget,
)
from gpusq_deploy.bundle import layer_cost_text
from gpusq_deploy.compile.engine_stage import EngineRequest
from gpusq_deploy.engines import (
    BackendChoice,
    LayerLists,
    Target,
    choose_backend,
    compared,
    device_of_target,
    graph_cost,
    kernel_works,
    layer_shares,
    layers_apart,
    load_fitted,
    parts_of_works,
    work_of,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import CastToFloatType, keep_fp32, known_tensors, run_passes, save_model, scratch_folder

# What times are predicted for: nothing else was published to fit to.
_TIMED = frozenset({("INT8", "fp16"), ("INT8", "bf16")})


class Estimated(NamedTuple):
    """What quantising is predicted to change, None where nothing is; and each kernel's work where shapes hide it."""

    cost: CostEstimate | None
    works: tuple[KernelWork, ...] = ()


Estimate = Callable[[Sequence[BuiltEngine]], Estimated]


@contextmanager
def estimating(request: EngineRequest, float_model: ir.Model) -> Generator[Estimate]:
    """Estimate what quantising does to kernels and bytes moved, against the model as it is: a prediction.

    Both graphs are built for the optimal batch size, because the layer list of a dynamic batch hides sizes: one or two
    seconds each for a ViT-S, in a process beside this one. Only a builder that needs no device is worth that; on a
    device it would be minutes.

    Args:
        request: What the engines will be built from; `folder/model.onnx` is there.
        float_model: The float32 graph before quantisation; not changed.

    Yields:
        From the engines that were built to the estimate. A comparison that fails says why in its note: the engines are
        good without it.
    """
    types = {layer.precision.upper() for layer in request.plan.layers if layer.weight is not None}
    what = " and ".join(sorted(types))
    target = _first_ahead(request)
    if target is None or (not what and request.batch.static):
        yield lambda _engines: _unknown(_not_built, what)
        return
    say, batch = request.reporter.say, request.batch.optimum
    task = f"building the same model without {what} to compare kernels" if what else "sizing the kernels"
    say(f"{task} ({target.name}, batch {batch})")
    with ExitStack() as stack:
        layers = _started(stack, request, float_model, target, quantised=bool(what))

        def estimate(engines: Sequence[BuiltEngine]) -> Estimated:
            engine = next((engine for engine in engines if engine.target == target.name), None)
            if engine is None:
                return _unknown(_not_built, what)
            try:
                return _estimated(request, engine, layers(), target, what)
            except (GpusqError, OSError) as error:
                why = error.what if isinstance(error, GpusqError) else str(error)
                say(f"warning: the comparison failed: {why}")
                return _unknown(lambda what: _not_compared(what, why), what)

        yield estimate


def _estimated(request: EngineRequest, engine: BuiltEngine, layers: LayerLists, target: Target, what: str) -> Estimated:
    cost = _compared(request, engine, layers, target, what) if what else None
    return Estimated(cost, () if request.batch.static else kernel_works(layers[-1]))


def _unknown(cost: Callable[[str], CostEstimate], what: str) -> Estimated:
    """Where nothing was compared: with the reason, if there is anything quantised to compare."""
    return Estimated(cost(what) if what else None)


def _first_ahead(request: EngineRequest) -> Target | None:
    """The first target whose engine tensorrt-rtx builds ahead of time here."""
    ahead = (target for target in request.targets if target.ahead_of_time)
    choices = ((target, choose_backend(target, bundle=request.name)) for target in ahead)
    return next((target for target, found in choices if _is_rtx(found)), None)


def _is_rtx(found: BackendChoice | SkippedTarget) -> bool:
    return isinstance(found, BackendChoice) and found.name == "tensorrt-rtx"


def _not_built(what: str) -> CostEstimate:
    # Further engines may come later, and this must stay true.
    return _not_compared(what, "when the bundle was made, no engine was built ahead of time")


def _not_compared(what: str, why: str) -> CostEstimate:
    note = f"not compared with the graph without {what}: {why}"
    return CostEstimate(target=None, built=None, unquantised=None, note=note, what=what)


def _started(
    stack: ExitStack, request: EngineRequest, float_model: ir.Model, target: Target, *, quantised: bool
) -> Callable[[], LayerLists]:
    """Start to build the float twin of a quantised graph and, where the engine's layers hide sizes, the built one."""
    try:
        if not quantised:
            return stack.enter_context(layers_apart([request.folder / MODEL], target, request.batch.optimum))
        path = Path(stack.enter_context(scratch_folder())) / MODEL
        # Smoothing may have made other tensors than this graph has.
        names = known_tensors(float_model.graph)
        whole = keep_fp32(request.plan)
        wide = replace(whole, tensors=tuple(name for name in whole.tensors if name in names))
        save_model(run_passes(float_model, [wide, CastToFloatType(request.plan.float_type)]), path)
        models = [path] if request.batch.static else [path, request.folder / MODEL]
        return stack.enter_context(layers_apart(models, target, request.batch.optimum))
    except (GpusqError, OSError) as error:
        failure = error

        def fail() -> LayerLists:
            raise failure

        return fail


def _compared(
    request: EngineRequest, engine: BuiltEngine, layers: LayerLists, target: Target, what: str
) -> CostEstimate:
    batch = request.batch.optimum
    other, built = layers[0], engine.engine_layers if request.batch.static else layers[1]
    return CostEstimate(
        target=target.name,
        built=graph_cost(built, batch=batch),
        unquantised=graph_cost(other, batch=batch),
        note=f"predicted from tensorrt-rtx's layer lists for {target.name} alone; nothing was timed",
        what=what,
        layers=_by_layer(request.plan, built, other, target),
        times=_times(built, other, target) if (what, request.plan.float_type) in _TIMED else None,
    )


def _times(built: Sequence[EngineLayer], other: Sequence[EngineLayer], target: Target) -> PredictedTimes | None:
    """On the first device that engines for this target run on."""
    device = device_of_target(target.name)
    if device is None:
        return None
    fitted = load_fitted()
    ours, theirs = (
        parts_of_works(Counter(work_of(layers)), device, fitted.constants).total for layers in (built, other)
    )
    ratio = fitted.int8_over_fp16
    return PredictedTimes(
        device=device.gpu, built=ours, unquantised=theirs, low=ratio.low, high=ratio.high, error=ratio.median_error
    )


def with_estimates(plan: QuantPlan, cost: CostEstimate | None) -> QuantPlan:
    """The plan with what INT8 is predicted to change in each layer, for the one target that it was predicted for."""
    said = {} if cost is None else {layer.layer: f"{cost.target}: {layer_cost_text(layer)}" for layer in cost.layers}
    layers = tuple(msgspec.structs.replace(layer, estimate=said.get(layer.layer)) for layer in plan.layers)
    return msgspec.structs.replace(plan, layers=layers)


def _by_layer(
    plan: QuantPlan, built: Sequence[EngineLayer], other: Sequence[EngineLayer], target: Target
) -> tuple[LayerCost, ...]:
    nodes = {layer.node: layer.layer for layer in plan.layers}
    asked = [layer.layer for layer in plan.layers if layer.precision == "int8"]
    ours, theirs = (layer_shares(side, nodes, target.peaks) for side in (built, other))
    return tuple(compared(ours, theirs, asked))
