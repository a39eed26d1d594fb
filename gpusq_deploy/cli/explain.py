"""How the chain valid -> eligible -> asked -> built as looks on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gpusq_deploy.artifacts.receipt import BuiltEngine
from gpusq_deploy.bundle import Bundle
from gpusq_deploy.explain import LayerExplanation, Step, explain_layers
from gpusq_deploy.targets import find_target


def print_chains(layers: Sequence[LayerExplanation]) -> None:
    """A table with one row per layer and one column per link; below it, why each layer gets no further."""
    console = Console()
    target = layers[0].target if layers else "no layer"
    table = Table(title=f"sparse tensor cores of {target}", title_justify="left")
    for heading in ("layer", "valid", "eligible", "asked", "built as"):
        table.add_column(heading, no_wrap=heading != "layer")
    for layer in layers:
        table.add_row(layer.layer, *(step.answer for step in layer.chain))
    console.print(table)
    for layer in layers:
        console.print(f"{layer.layer}: {_why(layer.chain)}", soft_wrap=True, markup=False, highlight=False)


def explained_engine(bundle: Bundle, engine: BuiltEngine) -> tuple[LayerExplanation, ...]:
    """The chain of every layer of a bundle on one of its engines' targets."""
    return explain_layers(
        bundle.manifest.sparsity.layers,
        find_target(engine.target),
        decisions=bundle.plan.layers,
        built=engine.layers,
    )


def chain_rows(layer: LayerExplanation) -> list[tuple[str, str]]:
    """A layer's chain link by link: the question, and the answer with its evidence."""
    return [(step.question, f"{step.answer}: {step.evidence}") for step in layer.chain]


def _why(chain: Sequence[Step]) -> str:
    stop = next((step for step in chain if step.answer != "yes"), chain[-1])
    return f"{stop.question}: {stop.answer}: {stop.evidence}"
