"""What a build would make: everything up to calibration, and nothing written."""

from __future__ import annotations

from dataclasses import dataclass

from gpusq_deploy.artifacts import LayerSparsity, Precision, Recipe, SkippedTarget, SparsityReport, require_used_rules
from gpusq_deploy.bundle import require_place
from gpusq_deploy.calibration import CalibrationInputs
from gpusq_deploy.compile.accuracy_gate import require_checkable
from gpusq_deploy.compile.float_graph import ExportOptions, canonical_graph
from gpusq_deploy.compile.inputs import find_data, fitted_batch, open_samples, read_checkpoint, require_stored
from gpusq_deploy.compile.recorded import recorded_recipe
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.compile.rewrite_selection import require_parsable
from gpusq_deploy.compile.target_checks import expressible_recipe
from gpusq_deploy.engines import BackendChoice, choose_backend
from gpusq_deploy.graph import GraphLayer, weighted_layers
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import DENSE
from gpusq_deploy.sparsity import graph_sparsity


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPreview:
    """What one layer would become; N and K are its GEMM's. `sparse` is whether sparse kernels would be asked for."""

    layer: str
    n: int
    k: int
    precision: Precision
    sparse: bool
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What a build would make.

    Attributes:
        request: What was asked.
        arch: The architecture.
        recipe: The recipe's name.
        layers: Every layer with weights, in the graph's order.
        backends: Who would build each target's engine, or why nobody here can; in the targets' order.
        calibration: Samples to find ranges on; None without data.
        verification: Samples to compare the built graph with the float graph on.
        unknown: What only the build itself decides, one sentence each.
    """

    request: BuildRequest
    arch: str
    recipe: str
    layers: tuple[LayerPreview, ...]
    backends: tuple[BackendChoice | SkippedTarget, ...]
    calibration: int | None
    verification: int
    unknown: tuple[str, ...]


def preview(request: BuildRequest, reporter: Reporter) -> Preview:
    """Load, check, export and simplify as the build does, then read off what the recipe says of each layer.

    Raises:
        GpusqError: What would also stop the build before calibration.
    """
    recipe = expressible_recipe(request)
    require_place(request.out, force=request.force)
    checkpoint = read_checkpoint(request, reporter)
    require_stored(checkpoint, request, recipe, sparse=request.sparse and request.prune is None)
    data = find_data(request, checkpoint, open_samples(request, checkpoint), recipe)
    recipe, request = recorded_recipe(recipe, checkpoint), fitted_batch(request, checkpoint)
    model = canonical_graph(checkpoint, ExportOptions.of(request), reporter)
    require_checkable(request, model)
    require_parsable(model, request)
    layers = weighted_layers(model)
    if request.quantize or request.sparse:
        require_used_rules(recipe, layers)
    stored = graph_sparsity(model, source=checkpoint.file, recipe=recipe, record=checkpoint.sparsity)
    return Preview(
        request=request,
        arch=str(checkpoint.arch),
        recipe=recipe.name,
        layers=_layers(layers, stored, request, recipe),
        backends=tuple(choose_backend(target, bundle=request.out.name) for target in request.targets),
        calibration=_calibration(request, recipe, data),
        verification=len(data.verify),
        unknown=tuple(_unknown(request, recipe)),
    )


def _layers(
    layers: tuple[GraphLayer, ...], stored: SparsityReport, request: BuildRequest, recipe: Recipe
) -> tuple[LayerPreview, ...]:
    states = {state.layer: state for state in stored.layers}
    return tuple(_layer(layer, states.get(layer.layer), request, recipe) for layer in layers)


def _layer(layer: GraphLayer, state: LayerSparsity | None, request: BuildRequest, recipe: Recipe) -> LayerPreview:
    rule = recipe.rule_for(layer.layer, layer.kind)
    precision: Precision = request.float_type
    reason = f"no rule of recipe {recipe.name} matches it" if rule is None else recipe.reason_of(rule)
    if not request.quantize:
        reason = "nothing is quantised"
    elif rule is not None and rule.precision != "float":
        precision = rule.precision
    expected = request.sparse and state is not None and state.expected
    sparse = expected and state is not None and (state.valid or request.prune is not None) and precision not in DENSE
    return LayerPreview(layer=layer.layer, n=layer.n, k=layer.k, precision=precision, sparse=sparse, reason=reason)


def _calibration(request: BuildRequest, recipe: Recipe, data: CalibrationInputs) -> int | None:
    ranged = request.quantize and any(rule.ranged for rule in recipe.rules)
    return len(data.calibrate) if ranged and data.real and not data.given else None


def _unknown(request: BuildRequest, recipe: Recipe) -> list[str]:
    said: list[str] = []
    if request.quantize:
        said.append("a layer whose input is constant or has no range, and what FP16 can't hold, stays float")
    if request.quantize and (recipe.mixed is not None or request.sparse_outputs is not None):
        said.append("which layers stay float or write INT8 is decided by their noise, on the calibration data")
    if request.rewrites == "measured" and request.targets:
        said.append("which rewrites for speed are kept is decided by compiling the graph with and without them")
    if request.prune is not None:
        said.append(f"what --prune {request.prune} costs is measured in the build")
    return said
