"""The network as a picture: a column for each block, a cell for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from gpusq_deploy.artifacts import BuiltEngine, BuiltLayer, LayerDecision, QuantPlan, Verification, YesNoUnknown
from gpusq_deploy.bundle.report.html.values import Cell, Column

# Steps of the error's colour, in dB: from one to the next the noise has ten times the energy.
STEPS = (40, 30, 20, 10)
# How the blocks that add most noise are marked, the worst first.
NOISIEST = ("most noise", "2nd", "3rd")
_RAN: dict[YesNoUnknown, tuple[str, str]] = {
    "yes": ("2:4 ✓", "s-yes"),
    "no": ("2:4 ✗", "s-no"),
    "unknown": ("2:4 ?", "s-unknown"),
}


def network(
    plan: QuantPlan, engine: BuiltEngine | None, found: Verification | None, anchors: Mapping[str, str]
) -> tuple[Column, ...]:
    """The layers of a plan in their blocks, as an engine has them; as planned where there is none.

    Args:
        plan: The layers, in graph order.
        engine: What was built.
        found: The error behind blocks and layers; None where nobody looked.
        anchors: Where in the page each layer is told of.
    """
    blocks = {} if found is None else {drift.module: drift.sqnr_db for drift in found.blocks}
    layers = {} if found is None else {drift.module: drift.sqnr_db for drift in found.layers}
    noisiest = [] if found is None else [drift.module for drift in found.noisiest(len(NOISIEST))]
    built = {} if engine is None else {layer.layer: layer for layer in engine.layers}
    columns: list[Column] = []
    for name, group in groupby(plan.layers, key=lambda layer: block_of(layer.layer, blocks)):
        members = list(group)
        cells = tuple(
            _cell(layer, name, built.get(layer.layer), {**blocks, **layers})._replace(anchor=anchors[layer.layer])
            for layer in members
        )
        places = [noisiest.index(each) for each in (name, *(layer.layer for layer in members)) if each in noisiest]
        mark = NOISIEST[min(places)] if places else ""
        columns.append(Column(name, *_decibels(blocks.get(name)), mark, cells))
    return tuple(columns)


def block_of(layer: str, blocks: Mapping[str, object]) -> str:
    """The block around a layer: one that the comparison looked behind, else the name up to its last number."""
    parts = layer.split(".")
    around = [".".join(parts[:count]) for count in range(1, len(parts))]
    known = [name for name in around if name in blocks]
    if known or blocks:
        return known[-1] if known else ""
    return next((name for name in reversed(around) if name.rpartition(".")[2].isdecimal()), "")


def _cell(layer: LayerDecision, block: str, built: BuiltLayer | None, decibels: Mapping[str, float]) -> Cell:
    got = layer.precision if built is None else built.precision
    as_asked = got == layer.precision
    label = "not found" if got is None else got.upper()
    ran = "unknown" if built is None else built.sparse_executed
    sparse = _RAN[ran] if layer.sparse else ("dense", "s-dense")
    return Cell(
        name=layer.layer.removeprefix(f"{block}.") if block else layer.layer,
        anchor="",
        precision=label if as_asked else f"{label} ≠ {layer.precision.upper()}",
        precision_class=f"p-{got or 'none'}" if as_asked else "p-wrong",
        sparse=sparse[0],
        sparse_class=sparse[1],
        decibels=_decibels(decibels.get(layer.layer))[0],
        decibels_class=_decibels(decibels.get(layer.layer))[1],
    )


def _decibels(sqnr_db: float | None) -> tuple[str, str]:
    if sqnr_db is None:
        return "", "e-none"
    step = next((index for index, least in enumerate(STEPS) if sqnr_db >= least), len(STEPS))
    return f"{sqnr_db:.1f} dB", f"e-{step}"
