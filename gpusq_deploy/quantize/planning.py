"""Decide, for every layer, what it becomes and why. Pure: nothing is rewritten here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import onnx_ir as ir

from gpusq_deploy.artifacts import (
    ActivationQuantization,
    CalibrationTable,
    FloatPrecision,
    LayerDecision,
    LayerSparsity,
    PlacedQuantization,
    Precision,
    QuantPlan,
    Recipe,
    Rule,
    SparsityReport,
    TensorRange,
    WeightQuantization,
    require_used_rules,
)
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import STORED_TYPE, GraphLayer, other_weights
from gpusq_deploy.numerics import fp8_scale, scale_from_amax
from gpusq_deploy.quantize.fp16_overflow import Fp16Overflow, text_of
from gpusq_deploy.quantize.sites import ActivationSites, Int8OutputDecision, QdqSite, fusion_notes
from gpusq_deploy.text import counted, some

# Of activations, by the precisions that quantise them.
_SCALES = {"int8": scale_from_amax, "fp8": fp8_scale}
# Why layers of these run dense whatever their weights are.
DENSE: dict[Precision, str] = {
    "int4": "dense: INT4 weights are unpacked for a dense float GEMM; zeros stay zeros",
    "fp32": "dense: sparse tensor cores have no FP32; zeros stay zeros",
}
_TINY = "its input's range is too small for a scale in the float type"
# Of the largest code, half a step: a scale that is further off moves it.
_HALF_STEP = 1 / 254
_LARGEST: dict[FloatPrecision, float] = {
    "fp32": float(np.finfo(np.float32).max),
    "fp16": float(np.finfo(np.float16).max),
    "bf16": (2 - 2**-7) * 2.0**127,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRequest:
    """What the user asked for. `int8` quantises what the recipe names, to INT8 or whatever it says."""

    recipe: Recipe
    quantize: bool
    sparse: bool
    float_type: FloatPrecision


def layers_to_quantize(layers: Sequence[GraphLayer], recipe: Recipe) -> tuple[GraphLayer, ...]:
    """Layers that the recipe wants in INT8 or FP8: those whose inputs need a range."""
    rules = ((layer, recipe.rule_for(layer.layer, layer.kind)) for layer in layers)
    return tuple(
        layer for layer, rule in rules if rule is not None and rule.ranged and not rule.too_short(layer.kind, layer.k)
    )


def make_plan(
    layers: Sequence[GraphLayer],
    request: PlanRequest,
    *,
    table: CalibrationTable | None,
    sparsity: SparsityReport,
    placements: ActivationSites | None = None,
    wide: Fp16Overflow | None = None,
) -> QuantPlan:
    """Turn recipe, graph, ranges and sparsity into decisions.

    Args:
        layers: Weighted layers of the float graph, in order.
        request: The recipe and the options.
        table: Ranges; None where nothing is quantised.
        sparsity: The 2:4 state of the same layers.
        placements: Further activations to quantise, whose ranges the table has too.
        wide: What stays float32 in FP16.

    Raises:
        GpusqError: A required rule decides nothing, a range is missing, or an activation exceeds the float type.
    """
    if request.quantize or request.sparse:
        require_used_rules(request.recipe, layers)
    ranges = {} if table is None else table.by_tensor()
    placements, wide = placements or ActivationSites(), wide or Fp16Overflow()
    kept = frozenset(tensor.tensor for tensor in wide.tensors)
    _require_representable([known for known in ranges.values() if known.tensor not in kept], request.float_type)
    states = {state.layer: state for state in sparsity.layers}
    outputs = {choice.node: choice for choice in placements.outputs}
    around = replace(request, float_type="fp32")
    decided = (
        _decision(
            layer,
            around if layer.node in wide.nodes else request,
            ranges,
            states.get(layer.layer),
            outputs.get(layer.node),
            placements.floats,
        )
        for layer in layers
    )
    decisions = tuple(_kept_float32(entry, layer, wide) for entry, layer in zip(decided, layers, strict=True))
    sites = (*placements.sites, *_output_sites(decisions, outputs))
    return QuantPlan(
        recipe=request.recipe.name,
        float_type=request.float_type,
        sparse_asked=request.sparse,
        layers=decisions,
        placed=tuple(_placed(site, ranges, request.float_type) for site in sites),
        wide=wide.tensors,
        notes=(*_notes(decisions, request, placements), *_wide_notes(wide)),
    )


def _decision(
    layer: GraphLayer,
    request: PlanRequest,
    ranges: Mapping[str, TensorRange],
    state: LayerSparsity | None,
    output: Int8OutputDecision | None,
    floats: Mapping[str, str],
) -> LayerDecision:
    precision, reason = _precision(layer, request, ranges, floats)
    one_scale = precision == "int8" and output is not None and output.chosen
    sparse, sparse_reason = _sparsity(request, state, precision)
    return LayerDecision(
        layer=layer.layer,
        node=layer.node,
        kind=layer.kind,
        n=layer.n,
        k=layer.k,
        macs=layer.macs,
        precision=precision,
        precision_reason=reason,
        sparse=sparse,
        sparse_reason=sparse_reason,
        activation=_input(layer, request.float_type, ranges, precision),
        weight=_weight(layer, request.recipe, precision, one_scale=one_scale),
        output_reason=None if output is None else output.reason,
    )


def _output_sites(decisions: Sequence[LayerDecision], outputs: Mapping[str, Int8OutputDecision]) -> list[QdqSite]:
    return [
        QdqSite(
            module=decision.layer,
            node=decision.node,
            role="output",
            tensor=outputs[decision.node].tensor,
            reason=outputs[decision.node].reason,
        )
        for decision in decisions
        if decision.weight is not None and decision.weight.one_scale
    ]


def _kept_float32(decision: LayerDecision, layer: GraphLayer, wide: Fp16Overflow) -> LayerDecision:
    """A layer that reads or makes what FP16 can't hold: float and INT4 layers are FP32, scales of other layers too."""
    if layer.node not in wide.nodes:
        return decision
    known = decision.activation
    if known is None or any(tensor.tensor == layer.weight for tensor in wide.tensors):
        reason = f"{decision.precision_reason}; FP32: FP16 can't hold what it reads or makes"
        sparse_reason = DENSE["fp32"] if decision.sparse else decision.sparse_reason
        return msgspec.structs.replace(
            decision,
            precision="fp32",
            precision_reason=reason,
            sparse=False,
            sparse_reason=sparse_reason,
            activation=None,
            weight=None,
        )
    return decision


def _wide_notes(wide: Fp16Overflow) -> Iterator[str]:
    if wide.tensors:
        tensors, nodes = counted(len(wide.tensors), "tensor"), counted(len(wide.nodes), "node")
        yield f"FP32 around {tensors} that FP16 can't hold: {nodes}"
    for tensor in wide.tensors:
        yield f"FP32: {text_of(tensor)}"
    yield from wide.notes


def _precision(
    layer: GraphLayer, request: PlanRequest, ranges: Mapping[str, TensorRange], floats: Mapping[str, str]
) -> tuple[Precision, str]:
    if not request.quantize:
        return request.float_type, "INT8 was not asked for"
    rule = request.recipe.rule_for(layer.layer, layer.kind)
    if rule is None:
        return request.float_type, f"no rule of recipe {request.recipe.name} matches it"
    if rule.precision == "float":
        return request.float_type, request.recipe.reason_of(rule)
    if layer.node in floats:
        return request.float_type, f"recipe {request.recipe.name}, mixed: {floats[layer.node]}"
    against = _against(layer, rule, ranges) or _too_small(layer, rule, ranges, request.float_type)
    if against:
        return request.float_type, against
    return rule.precision, request.recipe.reason_of(rule)


def _against(layer: GraphLayer, rule: Rule, ranges: Mapping[str, TensorRange]) -> str:
    """Why the layer can't be what its rule says; empty where it can."""
    if short := rule.too_short(layer.kind, layer.k):
        return short
    if not rule.ranged:
        if layer.kind != "linear":
            return f"{rule.precision} weights are for Linear layers, and this is a {layer.kind}"
        if layer.k % rule.block_size:
            return f"its {layer.k} inputs are no multiple of a block of {rule.block_size}"
        return ""
    known = ranges.get(layer.input)
    if known is None:
        raise GpusqError("no range for the layer's input", place=f"{layer.layer}, tensor {layer.input}")
    if known.amax == 0:
        return f"its input is zero on all calibration data ({known.origin}): it has no scale"
    return ""


def _too_small(layer: GraphLayer, rule: Rule, ranges: Mapping[str, TensorRange], float_type: FloatPrecision) -> str:
    """Why the layer stays float where the float type holds no scale near its range's; empty where it does."""
    if not rule.ranged or ranges[layer.input].amax > _LARGEST[float_type]:
        return ""
    amax = ranges[layer.input].amax
    exact, stored = (float(_SCALES[rule.precision](amax, dtype=kind)) for kind in (np.float64, STORED_TYPE[float_type]))
    return "" if abs(stored - exact) <= _HALF_STEP * exact else f"{_TINY} ({amax:.3g}, {ranges[layer.input].origin})"


def _input(
    layer: GraphLayer, float_type: FloatPrecision, ranges: Mapping[str, TensorRange], precision: Precision
) -> ActivationQuantization | None:
    return _activation(ranges[layer.input], float_type, precision) if precision in _SCALES else None


def _weight(layer: GraphLayer, recipe: Recipe, precision: Precision, *, one_scale: bool) -> WeightQuantization | None:
    if precision not in {"int8", "fp8", "int4"}:
        return None
    rule = recipe.rule_for(layer.layer, layer.kind)
    block = rule.block_size if rule is not None and precision == "int4" else 0
    return WeightQuantization(
        tensor=layer.weight, axis=layer.channel_axis, channels=layer.n, block=block, one_scale=one_scale
    )


def _sparsity(request: PlanRequest, state: LayerSparsity | None, precision: Precision) -> tuple[bool, str]:
    if not request.sparse:
        return False, "sparsity was not asked for"
    if precision in DENSE:
        return False, DENSE[precision]
    if state is None:
        return False, "dense: its weight is not a Linear's or a Conv2d's own, so the 2:4 check didn't see it"
    if not state.expected:
        return False, f"dense: {state.reason}"
    if not state.valid:
        return False, f"not 2:4 though it should be: {state.violations} of {state.groups} groups; {state.reason}"
    return True, f"2:4 valid in all {state.groups} groups; {state.reason}"


def _placed(site: QdqSite, ranges: Mapping[str, TensorRange], float_type: FloatPrecision) -> PlacedQuantization:
    known = ranges.get(site.tensor)
    if known is None or known.amax == 0:
        what = "no range for" if known is None else "zero on all calibration data:"
        raise GpusqError(f"{what} its {site.role}", place=f"{site.module}, tensor {site.tensor}")
    activation = _activation(known, float_type)
    return PlacedQuantization(
        module=site.module, node=site.node, role=site.role, activation=activation, reason=site.reason
    )


def _activation(
    known: TensorRange, float_type: FloatPrecision, precision: Precision = "int8"
) -> ActivationQuantization:
    try:
        scale = float(_SCALES[precision](known.amax, dtype=STORED_TYPE[float_type]))
    except ValueError as error:
        place = f"input of {known.layer}, tensor {known.tensor}"
        raise GpusqError(str(error), place=place, hint="build with --bf16 or --fp32") from error
    return ActivationQuantization(tensor=known.tensor, amax=known.amax, scale=scale, origin=known.origin)


def _require_representable(ranges: Iterable[TensorRange], float_type: FloatPrecision) -> None:
    for known in ranges:
        if known.amax > _LARGEST[float_type]:
            raise GpusqError(
                f"an activation reaches {known.amax:.6g}, more than {float_type} can hold ({_LARGEST[float_type]:.6g})",
                place=f"input of {known.layer}, tensor {known.tensor}",
                hint="build with --bf16 or --fp32",
            )


def _shares(decisions: Sequence[LayerDecision], total: int) -> Iterator[str]:
    """The share of each quantised precision; of INT8 where there is none."""
    coded = {decision.precision for decision in decisions if decision.weight is not None} or {"int8"}
    for precision in sorted(coded):
        share = sum(decision.macs for decision in decisions if decision.precision == precision) / total
        yield f"{precision.upper()}: {100 * share:.1f} % of the weighted layers' FLOPs"


def _notes(decisions: Sequence[LayerDecision], request: PlanRequest, placements: ActivationSites) -> tuple[str, ...]:
    notes: list[str] = []
    total = sum(decision.macs for decision in decisions)
    if request.quantize and total:
        notes.extend(_shares(decisions, total))
    unknown = [decision.layer for decision in decisions if decision.macs == 0]
    if unknown:
        notes.append(f"output shape unknown, so without FLOPs: {some(unknown)}")
    if small := [decision.layer for decision in decisions if decision.precision_reason.startswith(_TINY)]:
        notes.append(f"{some(small)}: {_TINY}: build with --fp32 to quantise them")
    notes.extend(_output_notes(decisions))
    if placements.sites:
        notes.extend(_site_notes(placements))
        int8 = {decision.node for decision in decisions if decision.precision == "int8"}
        notes.extend(fusion_notes(placements.attentions, request.recipe, int8_nodes=int8))
    elif request.quantize:
        notes.append("not quantised: softmax outputs, attention GEMMs, LayerNorm, GELU, residual adds")
    return tuple(notes)


def _output_notes(decisions: Sequence[LayerDecision]) -> Iterator[str]:
    asked = [decision for decision in decisions if decision.output_reason is not None]
    if asked:
        chosen = sum(decision.weight is not None and decision.weight.one_scale for decision in asked)
        yield f"INT8 outputs, with one weight scale each, in {chosen} of {counted(len(asked), 'layer')}"


def _site_notes(placements: ActivationSites) -> Iterator[str]:
    """What is INT8 beyond the layers, and what then is left."""
    residual = [site for site in placements.sites if site.role in {"residual", "branch"}]
    roles = ", ".join(dict.fromkeys(site.role for site in placements.sites if site not in residual))
    if roles:
        yield f"INT8 in {len(placements.attentions)} attentions: {roles}"
    if residual:
        adds = len({site.node for site in residual})
        yield f"INT8 in {adds} residual adds: {', '.join(dict.fromkeys(site.role for site in residual))}"
    kept = "LayerNorm, GELU" if residual else "LayerNorm, GELU, residual adds"
    yield f"not quantised: {kept}, other tensors of attentions"


def note_others(plan: QuantPlan, model: ir.Model) -> QuantPlan:
    """The plan with a note on each weight that no rule reaches, so that nothing stays float or dense unsaid."""
    notes = (
        f"{layer} stays {plan.float_type.upper()} and dense: its {operator} is not a MatMul, Gemm or Conv"
        for layer, operator in other_weights(model).items()
    )
    return msgspec.structs.replace(plan, notes=(*plan.notes, *notes))
