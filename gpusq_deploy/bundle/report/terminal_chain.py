"""How the chain valid -> eligible -> asked -> built as looks on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from gpusq_deploy.artifacts import BuiltEngine, Carrier, CostEstimate, LayerDecision
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.receipt import CODED
from gpusq_deploy.bundle.report.sparse_chain import (
    BlockedLayers,
    LayerExplanation,
    Question,
    breaks,
    explain_layers,
    tallies,
)
from gpusq_deploy.bundle.report.tables import print_pairs, print_rows, result_console
from gpusq_deploy.engines import find_target
from gpusq_deploy.text import counted, some

# The table of an engine says shorter what its last link asks.
_HEADINGS: dict[Question, str] = {"built as": "sparse"}


def print_chains(layers: Sequence[LayerExplanation]) -> None:
    """A table with one row per layer and one column per link; below it, where layers get no further and why."""
    console = result_console()
    target = layers[0].target if layers else "no layer"
    rows = [(layer.layer, *(step.answer for step in layer.chain)) for layer in layers]
    print_rows(console, f"sparse tensor cores of {target}", ("layer", "valid", "eligible", "asked", "built as"), rows)
    for line in map(_break_line, breaks(layers)):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def explained_engine(bundle: Bundle, engine: BuiltEngine) -> tuple[LayerExplanation, ...]:
    """The chain of every layer of a bundle on one of its engines' targets."""
    return explain_layers(
        bundle.manifest.sparsity.layers,
        find_target(engine.target),
        decisions=bundle.plan.layers,
        engine=engine,
    )


def print_engine(console: Console, bundle: Bundle, engine: BuiltEngine) -> None:
    """An engine layer by layer, the share of the FLOPs, and every break of a chain with its fix."""
    explained = explained_engine(bundle, engine)
    _print_engine_table(console, engine, explained)
    for line in (*_precision_lines(bundle, engine), *_totals_lines(explained), *map(_break_line, breaks(explained))):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_layer(console: Console, bundle: Bundle, engine: BuiltEngine, name: str) -> None:
    """Everything about one layer, or about those below a module, on one engine."""
    decisions = {decision.layer: decision for decision in bundle.plan.layers}
    explained = {found.layer: found for found in explained_engine(bundle, engine)}
    for layer in engine.layers:
        if not f"{layer.layer}.".startswith(f"{name}."):
            continue
        decision = decisions[layer.layer]
        rows = [
            *_decision_rows(decision),
            ("built as", f"{layer.precision or 'not found'}: {layer.reason}"),
            *_layer_rows(explained.get(layer.layer)),
            *_input_rows(decision),
        ]
        estimate = _estimate_text(decision.estimate, bundle.receipt.cost, engine)
        for title, said in (("INT8 output", decision.output_reason), ("INT8 or not", estimate)):
            if said is not None:
                rows.append((title, said))
        print_pairs(console, f"{layer.layer} on {engine.target}", rows)


def print_plan(console: Console, bundle: Bundle, name: str | None) -> None:
    """What is planned for each layer, of a bundle without an engine; or everything about some layers."""
    decisions = bundle.plan.layers
    if name is None:
        cells = [
            (
                entry.layer,
                f"{entry.n} x {entry.k}",
                entry.precision,
                "yes" if entry.sparse else "no",
                entry.sparse_reason,
            )
            for entry in decisions
        ]
        print_rows(
            console, f"{bundle.path}, as planned", ("layer", "N x K", "type", "2:4", "why"), cells, prose=("why",)
        )
        return
    for decision in decisions:
        if f"{decision.layer}.".startswith(f"{name}."):
            rows = [*_decision_rows(decision), ("2:4", decision.sparse_reason), *_input_rows(decision)]
            print_pairs(console, f"{decision.layer}, as planned", rows)


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


def _print_engine_table(console: Console, engine: BuiltEngine, explained: Sequence[LayerExplanation]) -> None:
    chains = {found.layer: found for found in explained}
    rows: list[tuple[str, ...]] = []
    for layer in engine.layers:
        found = chains.get(layer.layer)
        share = None if found is None else found.flops_share
        built = layer.precision or "not found"
        rows.append(
            (
                layer.layer,
                "unknown" if share is None else f"{share:.1%}",
                built if built == layer.asked else f"{layer.asked} > {built}",
                *(("unknown",) * 4 if found is None else (step.answer for step in found.chain)),
            )
        )
    headings = ("layer", "FLOPs", "type", "valid", "eligible", "asked", "sparse")
    print_rows(console, f"engine {engine.target}", headings, rows)


def _precision_lines(bundle: Bundle, engine: BuiltEngine) -> list[str]:
    """Each quantised precision by FLOPs (INT8 where there is none), and every layer that isn't what was asked."""
    macs = {decision.layer: decision.macs for decision in bundle.plan.layers}
    lines: list[str] = []
    quantised = {layer.asked for layer in engine.layers}
    for name in [name for name in CODED if name in quantised] or ["int8"]:
        asked = [layer.layer for layer in engine.layers if layer.asked == name]
        kept = [layer.layer for layer in engine.layers if layer.asked == layer.precision == name]
        counts = [f"{word} {len(layers)}{_share(layers, macs)}" for word, layers in (("asked", asked), ("built", kept))]
        lines.append(f"{name.upper()}, of {counted(len(engine.layers), 'layer')}: {', '.join(counts)}")
    wrong = [f"{layer.layer}: {layer.reason}" for layer in engine.layers if layer.precision != layer.asked]
    return [*lines, *wrong]


def _share(layers: Sequence[str], macs: Mapping[str, int]) -> str:
    total = sum(macs.values())
    return _of_flops(sum(macs[layer] for layer in layers) / total if total else None)


def _totals_lines(explained: Sequence[LayerExplanation]) -> list[str]:
    """The table's four columns added up: each answer that a layer has, and yes even where none has it."""
    parts: dict[str, list[str]] = {}
    for tally in tallies(explained):
        if tally.layers or tally.answer == "yes":
            said = f"{tally.answer} {tally.layers}{_of_flops(tally.flops_share if tally.layers else None)}"
            parts.setdefault(_HEADINGS.get(tally.question, tally.question), []).append(said)
    columns = [f"  {heading}: {', '.join(said)}" for heading, said in parts.items()]
    return [f"2:4, of {counted(len(explained), 'layer')}:", *columns]


def _break_line(found: BlockedLayers) -> str:
    mend = f"\n    try: {found.mend}" if found.mend else ""
    where = f"'{_HEADINGS.get(found.question, found.question)}' is {found.answer} for"
    layers = f"{counted(len(found.layers), 'layer')}{_of_flops(found.flops_share)}: {some(found.layers)}"
    return f"{where} {layers}\n    {found.evidence}{mend}"


def _of_flops(share: float | None) -> str:
    return "" if share is None else f" ({share:.1%} of FLOPs)"
