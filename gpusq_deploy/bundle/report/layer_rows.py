"""Everything that is known of one layer, as pairs of a heading and what is said: for the terminal and the page."""

from __future__ import annotations

from gpusq_deploy.artifacts import BuiltEngine, BuiltLayer, Carrier, CostEstimate, LayerDecision
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.report.sparse_chain import LayerExplanation, explain_layers
from gpusq_deploy.engines import find_target


def explained_engine(bundle: Bundle, engine: BuiltEngine) -> tuple[LayerExplanation, ...]:
    """The chain of every layer of a bundle on one of its engines' targets."""
    return explain_layers(
        bundle.manifest.sparsity.layers,
        find_target(engine.target),
        decisions=bundle.plan.layers,
        engine=engine,
    )


def built_rows(
    bundle: Bundle, engine: BuiltEngine, layer: BuiltLayer, chain: LayerExplanation | None
) -> list[tuple[str, str]]:
    """What was decided for a layer, what an engine made of it, and why."""
    decision = next(entry for entry in bundle.plan.layers if entry.layer == layer.layer)
    rows = [
        *_decision_rows(decision),
        ("built as", f"{layer.precision or 'not found'}: {layer.reason}"),
        *_layer_rows(chain),
        *_input_rows(decision),
    ]
    estimate = _estimate_text(decision.estimate, bundle.receipt.cost, engine)
    said = (("INT8 output", decision.output_reason), ("INT8 or not", estimate))
    return [*rows, *((title, text) for title, text in said if text is not None)]


def planned_rows(decision: LayerDecision) -> list[tuple[str, str]]:
    """What was decided for a layer, and why."""
    return [*_decision_rows(decision), ("2:4", decision.sparse_reason), *_input_rows(decision)]


def _decision_rows(decision: LayerDecision) -> list[tuple[str, str]]:
    return [
        ("GEMM", f"N = {decision.n}, K = {decision.k}, {2 * decision.macs} FLOPs a sample"),
        ("asked", f"{decision.precision}: {decision.precision_reason}"),
    ]


def _input_rows(decision: LayerDecision) -> list[tuple[str, str]]:
    known = decision.activation
    if known is None:
        return []
    return [("input", f"{known.tensor}: amax {known.amax:.5g}, scale {known.scale:.5g}, {known.origin}")]


def _estimate_text(estimate: str | None, cost: CostEstimate | None, engine: BuiltEngine) -> str | None:
    """What INT8 is predicted to change in a layer, under the engine of the target that it was predicted for."""
    predicted = None if cost is None else cost.target
    if estimate is None or predicted in {None, engine.target}:
        return estimate
    return f"unknown for {engine.target}: the graphs were compared for {predicted} alone"


def _layer_rows(layer: LayerExplanation | None) -> list[tuple[str, str]]:
    if layer is None:
        return []
    rows = [("engine layer", _carrier_text(carrier)) for carrier in layer.carriers]
    for step in layer.chain:
        mend = f"\ntry: {step.mend}" if step.mend else ""
        rows.append((f"2:4 {step.question}", f"{step.answer}: {step.evidence}{mend}"))
    return rows


def _carrier_text(carrier: Carrier) -> str:
    fused = f"; fuses {', '.join(carrier.fused)}" if carrier.fused else ""
    return (
        f"{carrier.name} ({carrier.kind}): {', '.join(carrier.inputs)} -> {', '.join(carrier.outputs)}; "
        f"kernel {carrier.tactic or 'not named'}{fused}"
    )
