"""From a plan's decisions and an engine's layers to the receipt: per layer, what was asked, what was built, and why.

A decision is joined to the engine through the name of its ONNX node, which the builder keeps in each layer's metadata.
Only GEMM layers answer for a node: the metadata of the kernel that adds its bias names it too.

Whether a layer runs sparse has four sources, the strongest first: names of the kernels that a profiler saw
(`with_profile`), the tactic in the engine inspector, the builder's log of layers that it picked sparse kernels for, and
TensorRT-RTX's layer list, which can't see kernels and answers unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import msgspec

from gpusq_deploy.artifacts import (
    BuiltEngine,
    BuiltLayer,
    EngineLayer,
    LayerDecision,
    Precision,
    QuantPlan,
    SparsityReport,
    YesNoUnknown,
)
from gpusq_deploy.engines import KernelTrace, LayerClass, classify, generated_product, sparse_tactic

_PRECISIONS: dict[str | None, Precision] = {name: name for name in get_args(Precision)}
# Of several pieces, the one that keeps a layer from being what was asked.
_WORST_FIRST: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "int8", "fp8", "int4")
# A layer ran sparse only where all its pieces did.
_LEAST_SPARSE: tuple[YesNoUnknown, ...] = ("no", "unknown", "yes")

_PICKED = "picked sparse implementation for layers:"

# Precisions of codes and scales, and the builder's names of the codes' types.
CODED: dict[Precision, str] = {"int8": "Int8", "fp8": "FP8", "int4": "Int4"}


_Classified = tuple[EngineLayer, LayerClass]


def built_layers(
    plan: QuantPlan,
    engine_layers: Sequence[EngineLayer],
    sparsity: SparsityReport | None = None,
    *,
    notes: Sequence[str] = (),
) -> tuple[BuiltLayer, ...]:
    """What became of every decision of a plan.

    Args:
        plan: The decisions; `node` is the ONNX name of the MatMul, Gemm or Conv as the builder was given it.
        engine_layers: The engine's layers, of one engine.
        sparsity: Which weights are 2:4. Without it, those that the plan counts on.
        notes: What the builder said; it may name layers that it picked sparse kernels for.

    Returns:
        One entry per decision, in the plan's order.
    """
    engine = [(layer, classify(layer)) for layer in engine_layers]
    valid = {layer.layer for layer in sparsity.layers if layer.valid} if sparsity is not None else None
    picked = picked_sparse(notes)
    return tuple(
        _built(decision, engine, plan, decision.sparse if valid is None else decision.layer in valid, picked)
        for decision in plan.layers
    )


def picked_sparse(notes: Sequence[str]) -> frozenset[str]:
    """Engine layers that TensorRT 8 to 10.3 says, in its log, to have picked sparse kernels for."""
    lists = [note.partition(_PICKED)[2] for note in notes if _PICKED in note]
    return frozenset(name.strip() for names in lists for name in names.split(",") if name.strip())


def with_profile(engine: BuiltEngine, trace: KernelTrace, *, profiler: str) -> BuiltEngine:
    """The engine with what a profiler saw: the strongest evidence for sparse kernels, or against.

    Kernels don't name their layers, so a trace settles only what is the same for all layers that could run sparse, by
    these rules; else what was known before stays.

    1. Those layers are the ones with 2:4 weights: the builder is asked for sparse kernels for the engine as a whole.
    2. Yes, where every one has engine layers, and sparse kernels were launched at least once for each of these in each
       inference. A split layer has several; merged layers share one.
    3. No, where no sparse kernel was launched at all, every one has engine layers, and neither these nor the trace hold
       a product in a generated kernel, whose name doesn't tell.

    Args:
        engine: The engine that ran.
        trace: The kernels that ran, of all inferences.
        profiler: Who saw them, for the record.
    """
    asked = any(layer.sparse_asked for layer in engine.layers)
    able = [layer for layer in engine.layers if asked and layer.sparse_weights_valid]
    verdict, said = _seen(able, trace)
    layers = tuple(
        msgspec.structs.replace(
            layer, sparse_executed=verdict or layer.sparse_executed, reason=f"{layer.reason}; {profiler} saw {said}"
        )
        if layer in able
        else layer
        for layer in engine.layers
    )
    source = f"{engine.source}; kernel names seen by {profiler}"
    return msgspec.structs.replace(engine, layers=layers, source=source, executed=True)


def _seen(able: Sequence[BuiltLayer], trace: KernelTrace) -> tuple[YesNoUnknown | None, str]:
    """What a trace settles for all of these layers, None where nothing; and the counts that it rests on."""
    carriers = {name for layer in able for name in layer.engine_layers}
    sparse = sum(count for name, count in trace.launches.items() if sparse_tactic(name)[0] == "yes")
    launched = f"{sparse} launches of sparse kernels among {sum(trace.launches.values())}"
    said = [f"{launched} in {trace.inferences} inferences, for {len(carriers)} engine layers with 2:4 weights"]
    if trace.uneven:
        said.append(f"the launches of {', '.join(trace.uneven[:3])} don't divide by {trace.inferences} inferences")
    lost = [layer.layer for layer in able if not layer.engine_layers]
    if lost:
        return None, ", ".join((*said, f"but no engine layer is known for {', '.join(lost[:3])}"))
    if sparse:
        return ("yes" if sparse >= len(carriers) * trace.inferences else None), ", ".join(said)
    generated = sorted(name for name in carriers | {*trace.launches} if generated_product(name))
    if generated:
        return None, ", ".join((*said, f"but names of generated kernels, such as {generated[0]}, don't show it"))
    return "no", ", ".join(said)


def _built(
    decision: LayerDecision, engine: list[_Classified], plan: QuantPlan, weights_valid: bool, picked: frozenset[str]
) -> BuiltLayer:
    holding = [(layer, found) for layer, found in engine if decision.node in layer.onnx_nodes]
    gemms = [(layer, found) for layer, found in holding if found.role == "gemm"]
    if gemms:
        precision, reason = _precision(decision, gemms)
    else:
        precision, reason = None, _not_found(decision, holding)
    sparse_asked = plan.sparse_asked and decision.sparse
    verdict, sparse_reason = _sparse(decision, plan, weights_valid, [layer.tactic for layer, _ in gemms])
    if verdict == "unknown" and gemms and all(layer.name in picked for layer, _ in gemms):
        verdict, sparse_reason = "yes", "sparse yes: the builder's log names it among the layers with sparse kernels"
    return BuiltLayer(
        layer=decision.layer,
        node=decision.node,
        asked=decision.precision,
        precision=precision,
        engine_layers=tuple(layer.name for layer, _ in gemms),
        sparse_asked=sparse_asked,
        sparse_weights_valid=weights_valid,
        sparse_executed=verdict,
        reason=f"{reason}; {sparse_reason}",
    )


def _precision(decision: LayerDecision, gemms: list[_Classified]) -> tuple[Precision | None, str]:
    said = [found.precision for _, found in gemms]
    known = [_PRECISIONS[name] for name in said if name in _PRECISIONS]
    whole = len(known) == len(said)
    precision: Precision | None = next(name for name in _WORST_FIRST if name in known) if whole else None
    parts = [_shape_of_the_build(gemms)]
    if not whole:
        parts.append(f"built in {', '.join(sorted({name or 'an unknown type' for name in said}))}")
    elif precision != decision.precision:
        parts.append(_mismatch(decision, precision, gemms))
    return precision, "; ".join(part for part in parts if part)


def _shape_of_the_build(gemms: list[_Classified]) -> str:
    names = ", ".join(layer.name for layer, _ in gemms)
    if len(gemms) > 1:
        mixed = len({found.precision for _, found in gemms}) > 1
        return f"split into {len(gemms)} GEMMs ({names})" + (", of which the widest type counts" if mixed else "")
    # The builder joins the names of products over one input with a plus sign.
    merged = ", merged with other GEMMs of the same input" if "+" in names else ""
    return f"built in {names}{merged}"


def _mismatch(decision: LayerDecision, precision: Precision | None, gemms: list[_Classified]) -> str:
    asked = f"asked for {decision.precision}, built {precision}"
    if decision.precision not in CODED:
        return f"{asked}: a strongly typed graph decides its types, so look at the casts around {decision.node}"
    layer = next(layer for layer, found in gemms if found.precision == precision)
    types = ", ".join(tensor.dtype for tensor in layer.inputs)
    if any(tensor.dtype == CODED[decision.precision] for tensor in (*layer.inputs, *layer.constants)):
        return (
            f"{asked}: {layer.name} reads {types} and multiplies in {precision}; place Q/DQ directly on both "
            "inputs of the node"
        )
    return f"{asked}: {layer.name} reads {types}; its Q/DQ pairs are missing or were folded away"


def _not_found(decision: LayerDecision, holding: list[_Classified]) -> str:
    if any(found.role == "attention" for _, found in holding):
        return f"folded into the fused attention {holding[0][0].name}, which has no GEMM of its own"
    if holding:
        names = ", ".join(layer.name for layer, _ in holding)
        return f"no GEMM of the engine names {decision.node}, only {names}, which the GEMM was fused into"
    return (
        f"no layer of the engine names {decision.node}: it was removed (unused, or a constant), "
        "or renamed after planning; build again from the checkpoint"
    )


def _sparse(
    decision: LayerDecision, plan: QuantPlan, weights_valid: bool, tactics: list[str]
) -> tuple[YesNoUnknown, str]:
    """The kernels' names come first: the builder is asked once for the whole engine, not by layer."""
    told = [sparse_tactic(tactic) for tactic in tactics]
    verdict, why = min(told, key=lambda said: _LEAST_SPARSE.index(said[0]), default=("unknown", "no GEMM was found"))
    unasked = f"sparse not asked: {decision.sparse_reason}" if plan.sparse_asked else "2:4 was not asked for"
    asked = "" if plan.sparse_asked and decision.sparse else unasked
    if verdict != "yes" and not (plan.sparse_asked and weights_valid):
        return "no", asked or "dense: the weight isn't 2:4; prune it with gpusq-compress"
    return verdict, f"{asked}; sparse {verdict}: {why}" if asked else f"sparse {verdict}: {why}"
