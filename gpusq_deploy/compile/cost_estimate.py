"""Predict what a build gains, by compiling the float graph beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import (
    MODEL,
    BuiltEngine,
    CostEstimate,
    EngineLayer,
    LayerCost,
    QuantPlan,
)
from gpusq_deploy.bundle import layer_cost_text
from gpusq_deploy.compile.engine_stage import EngineRequest
from gpusq_deploy.engines import (
    Target,
    compared,
    graph_cost,
    layer_shares,
    layers_at,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import CastToFloatType, keep_fp32, known_tensors, run_passes, save_model, scratch_folder


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
        whole = keep_fp32(request.plan)
        wide = replace(whole, tensors=tuple(name for name in whole.tensors if name in names))
        save_model(run_passes(float_model, [wide, CastToFloatType(request.plan.float_type)]), path)
        other = layers_at(path, target, batch, backend="tensorrt-rtx")
    return CostEstimate(
        target=target.name,
        built=graph_cost(built, batch=batch),
        unquantised=graph_cost(other, batch=batch),
        note=f"predicted from tensorrt-rtx's layer lists for {target.name} alone; nothing was timed",
        what=what,
        layers=_by_layer(request.plan, built, other, target),
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
