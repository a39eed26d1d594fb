"""How the chain valid -> eligible -> asked -> built as looks on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console

from gpusq_deploy.artifacts import BuiltEngine
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.receipt import CODED
from gpusq_deploy.bundle.report.layer_rows import built_rows, explained_engine, planned_rows
from gpusq_deploy.bundle.report.sparse_chain import (
    BlockedLayers,
    LayerExplanation,
    Question,
    breaks,
    of_flops,
    totals,
)
from gpusq_deploy.bundle.report.tables import print_pairs, print_rows, result_console
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


def print_engine(console: Console, bundle: Bundle, engine: BuiltEngine) -> None:
    """An engine layer by layer, the share of the FLOPs, and every break of a chain with its fix."""
    explained = explained_engine(bundle, engine)
    _print_engine_table(console, engine, explained)
    for line in (*_precision_lines(bundle, engine), *_totals_lines(explained), *map(_break_line, breaks(explained))):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_layer(console: Console, bundle: Bundle, engine: BuiltEngine, name: str) -> None:
    """Everything about one layer, or about those below a module, on one engine."""
    explained = {found.layer: found for found in explained_engine(bundle, engine)}
    for layer in engine.layers:
        if not f"{layer.layer}.".startswith(f"{name}."):
            continue
        rows = built_rows(bundle, engine, layer, explained.get(layer.layer))
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
            print_pairs(console, f"{decision.layer}, as planned", planned_rows(decision))


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
    return of_flops(sum(macs[layer] for layer in layers) / total if total else None)


def _totals_lines(explained: Sequence[LayerExplanation]) -> list[str]:
    """The table's four columns added up."""
    columns = [f"  {_HEADINGS.get(question, question)}: {said}" for question, said in totals(explained)]
    return [f"2:4, of {counted(len(explained), 'layer')}:", *columns]


def _break_line(found: BlockedLayers) -> str:
    mend = f"\n    try: {found.mend}" if found.mend else ""
    where = f"'{_HEADINGS.get(found.question, found.question)}' is {found.answer} for"
    layers = f"{counted(len(found.layers), 'layer')}{of_flops(found.flops_share)}: {some(found.layers)}"
    return f"{where} {layers}\n    {found.evidence}{mend}"
