"""Which projections to query, key and value become one product, decided from the recipe and the 2:4 state of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from gpusq_deploy.artifacts.plan import Plan
from gpusq_deploy.artifacts.sparsity import LayerSparsity, SparsityRecord, SparsityReport
from gpusq_deploy.calibration.moments import ChannelMoments
from gpusq_deploy.graph.layers import graph_weights, weighted_layers
from gpusq_deploy.passes.base import run_passes
from gpusq_deploy.passes.pack_projections import PackProjections, Triple, find_projections
from gpusq_deploy.placing import Prepared
from gpusq_deploy.quantisation import Ready
from gpusq_deploy.recipe import Recipe
from gpusq_deploy.sparsity import sparsity_report


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """What the plan is made from, with packed projections.

    Attributes:
        prepared: The graph and its layers; the layer of a packed product is called `attention.q_proj+k_proj+v_proj`.
        stored: The 2:4 state of those layers.
        step: The pass that was run.
        notes: What was packed, and what wasn't and why, for the plan.
    """

    prepared: Prepared
    stored: SparsityReport
    step: PackProjections
    notes: tuple[str, ...]

    def noted(self, plan: Plan) -> Plan:
        """The plan with these notes."""
        return msgspec.structs.replace(plan, notes=(*plan.notes, *self.notes))


def pack_projections(
    prepared: Prepared, stored: SparsityReport, recipe: Recipe, record: SparsityRecord | None
) -> Packed:
    """Pack every triple whose three layers, and the packed one by its name, are decided alike.

    Args:
        prepared: The float graph with its ranges; q, k and v read one tensor, so theirs is the packed product's.
        stored: The 2:4 state of its layers.
        recipe: One of its rules must decide all of a triple: a rule for `*.q_proj` alone keeps it apart.
        record: Which layers the checkpoint says are 2:4.
    """
    found = find_projections(prepared.model)
    states = {state.layer: state for state in stored.layers}
    reasons = {triple: _against(triple, recipe, states) for triple in found}
    step = PackProjections(tuple(triple for triple in found if not reasons[triple]))
    notes = _notes(reasons)
    if not step.chosen:
        return Packed(prepared=prepared, stored=stored, step=step, notes=notes)
    model = run_passes(prepared.model, [step])
    layers = weighted_layers(model)
    report = sparsity_report(
        graph_weights(model, layers), source=stored.source, recipe=recipe, record=_with_packed(record, step.chosen)
    )
    ready = prepared.ready
    if ready is not None:
        ready = replace(ready, model=model, layers=layers, moments=_moments(ready, step.chosen))
    return Packed(
        prepared=replace(prepared, model=model, layers=layers, ready=ready), stored=report, step=step, notes=notes
    )


def _against(triple: Triple, recipe: Recipe, states: Mapping[str, LayerSparsity]) -> str:
    rules = {id(recipe.rule_for(name, "linear")) for name in (*triple.modules, triple.packed)}
    if len(rules) > 1:
        return f"recipe {recipe.name} decides them by different rules"
    found = [states.get(name) for name in triple.modules]
    if len({(state.expected, state.valid) for state in found if state is not None}) > 1:
        return "some of them are 2:4 and some are not"
    return ""


def _with_packed(record: SparsityRecord | None, chosen: Sequence[Triple]) -> SparsityRecord | None:
    """The record with the packed layers whose parts it names."""
    if record is None:
        return None
    packed = tuple(triple.packed for triple in chosen if set(triple.modules) <= set(record.layers))
    return SparsityRecord(method=record.method, layers=(*record.layers, *packed))


def _moments(ready: Ready, chosen: Sequence[Triple]) -> dict[str, ChannelMoments]:
    """The packed product reads what its first part read."""
    packed = {triple.node: ready.moments[triple.nodes[0]] for triple in chosen if triple.nodes[0] in ready.moments}
    return {**ready.moments, **packed}


def _notes(reasons: Mapping[Triple, str]) -> tuple[str, ...]:
    count = sum(not reason for reason in reasons.values())
    notes = [f"{3 * count} projections to query, key and value are taken in {count} products"] if count else []
    for reason in dict.fromkeys(filter(None, reasons.values())):
        names = [triple.packed for triple, given in reasons.items() if given == reason]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        notes.append(f"not taken in one product: {names[0]}{more}: {reason}")
    return tuple(notes)
