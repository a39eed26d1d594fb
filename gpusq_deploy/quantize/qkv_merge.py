"""Which Q/K/V projections are merged into one GEMM, decided from the recipe and the 2:4 state of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import LayerSparsity, QuantPlan, Recipe, SparsityRecord, SparsityReport
from gpusq_deploy.graph import MergeQkv, PassLog, QkvGroup, find_projections, run_passes
from gpusq_deploy.sparsity import graph_sparsity
from gpusq_deploy.text import by_reason, counted, some

_PARTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedGraph:
    """A float graph with packed projections.

    Attributes:
        model: The graph; the layer of a merged GEMM is called `attention.q_proj+k_proj+v_proj`.
        stored: The 2:4 state of its layers.
        chosen: What was packed.
        notes: That, for the plan.
        declined: What wasn't packed and why, for the plan.
    """

    model: ir.Model
    stored: SparsityReport
    chosen: tuple[QkvGroup, ...] = ()
    notes: tuple[str, ...] = ()
    declined: tuple[str, ...] = ()

    def noted(self, plan: QuantPlan, rewrites: tuple[str, ...] = ()) -> QuantPlan:
        """The plan with these notes, and those on rewrites."""
        return msgspec.structs.replace(plan, notes=(*plan.notes, *self.notes, *rewrites, *self.declined))


def merge_qkv(
    model: ir.Model,
    stored: SparsityReport,
    recipe: Recipe,
    record: SparsityRecord | None,
    log: PassLog | None = None,
) -> MergedGraph:
    """Pack every triple whose three layers, and the packed one by its name, are decided alike.

    Args:
        model: The canonical float graph; left as it is.
        stored: The 2:4 state of its layers.
        recipe: One of its rules must decide all of a triple: a rule for `*.q_proj` alone keeps it apart.
        record: Which layers the checkpoint says are 2:4.
        log: Hears the pass.
    """
    found = find_projections(model)
    states = {state.layer: state for state in stored.layers}
    reasons = {triple: _against(triple, recipe, states) for triple in found}
    chosen = tuple(triple for triple in found if not reasons[triple])
    declined = _declined(reasons)
    if not chosen:
        return MergedGraph(model=model, stored=stored, declined=declined)
    packed = run_passes(model, [MergeQkv(chosen)], after=(log or PassLog()).after(model))
    report = graph_sparsity(packed, source=stored.source, recipe=recipe, record=_with_packed(record, chosen))
    count = len(chosen)
    notes = (f"merged {_PARTS * count} Q/K/V projections into {counted(count, 'GEMM')}",)
    return MergedGraph(model=packed, stored=report, chosen=chosen, notes=notes, declined=declined)


def _against(triple: QkvGroup, recipe: Recipe, states: Mapping[str, LayerSparsity]) -> str:
    rules = {id(recipe.rule_for(name, "linear")) for name in (*triple.modules, triple.packed)}
    if len(rules) > 1:
        return f"recipe {recipe.name} decides them by different rules"
    found = [states.get(name) for name in triple.modules]
    if len({(state.expected, state.valid) for state in found if state is not None}) > 1:
        return "some of them are 2:4 and some are not"
    return ""


def _with_packed(record: SparsityRecord | None, chosen: Sequence[QkvGroup]) -> SparsityRecord | None:
    """The record with the packed layers whose parts it names."""
    if record is None:
        return None
    packed = tuple(triple.packed for triple in chosen if set(triple.modules) <= set(record.layers))
    return SparsityRecord(method=record.method, layers=(*record.layers, *packed))


def _declined(reasons: Mapping[QkvGroup, str]) -> tuple[str, ...]:
    given = by_reason((triple.packed, reason) for triple, reason in reasons.items() if reason)
    return tuple(f"Q/K/V projections not merged in {some(names, 1)}: {reason}" for reason, names in given.items())
