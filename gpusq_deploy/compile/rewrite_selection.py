"""Which graph rewrites for speed a model keeps: it is compiled with and without each.

What is compiled is the float graph in the float type, before anything is calibrated or quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import onnx_ir as ir

from gpusq_deploy.artifacts import FloatPrecision, GraphCost
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.engines import BackendName, Target, find_api, find_target, graph_cost, layers_at, unparsed
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import (
    FASTER,
    AttentionScale,
    CastToFloatType,
    Pass,
    PassLog,
    cut_constants,
    give_back,
    heard,
    module_of,
    node_name,
    run_passes,
    scales_scores,
    scratch_model,
    share_weights,
)
from gpusq_deploy.progress import Reporter
from gpusq_deploy.text import counted, some

_AHEAD: BackendName = "tensorrt-rtx"
_STAND_IN = "a100"
# With as many kernels, what moves less than this share fewer bytes is the same.
_LEAST_SAVING = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class CostProbe:
    """What forms are compared by: kernels, then bytes moved, of an engine for `target` at one batch size.

    `stand_in` says that it stands for targets that nobody builds for here.
    """

    target: Target
    batch: int
    float_type: FloatPrecision
    stand_in: bool = False

    def measure(self, model: ir.Model) -> GraphCost:
        """Compile a float32 graph in the float type: its cost. Weights are of no matter, so most are left out.

        Raises:
            GpusqError: It can't be compiled, or there is no room to write it.
        """
        with scratch_model(_lightened(model, self.float_type)) as path:
            cost = graph_cost(layers_at(path, self.target, self.batch, backend=_AHEAD), batch=self.batch)
        give_back()
        return cost

    def __str__(self) -> str:
        instead = ", which stands in for the targets" if self.stand_in else ""
        return f"tensorrt-rtx for {self.target.name}{instead}, {self.float_type}, batch {self.batch}, nothing timed"


class Rewritten(NamedTuple):
    """A graph, and notes for the plan on how it was rewritten."""

    model: ir.Model
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewriteSelection:
    """The rewrites that a model keeps, in order, and a note on each that found something to do.

    `compared` says that forms were compiled.
    """

    kept: tuple[Pass, ...]
    left_out: tuple[Pass, ...] = ()
    notes: tuple[str, ...] = ()
    compared: bool = False


def find_probe(request: BuildRequest) -> CostProbe | str:
    """For the first target that is built ahead of time, or another in its place; or why nothing is compared."""
    api = find_api(_AHEAD)
    if isinstance(api, str):
        return api
    chosen = next((target for target in request.targets if _AHEAD in target.ahead_of_time), None)
    return CostProbe(
        target=chosen or find_target(_STAND_IN),
        batch=request.batch.optimum,
        float_type=request.float_type,
        stand_in=chosen is None,
    )


def all_rewrites(simple: ir.Model, reporter: Reporter, log: PassLog) -> Rewritten:
    """The graph after all rewrites for speed: on no model did one cost a kernel or bytes (docs/architecture.md)."""
    changes: dict[str, int] = {}
    hear = heard("rewriting", FASTER, reporter, log.after(simple))

    def after(step: Pass, model: ir.Model, count: int) -> None:
        changes[step.name] = count
        hear(step, model, count)

    model = run_passes(simple, FASTER, after=after)
    return Rewritten(model, tuple(f"{_named(step, changes)} applied" for step in FASTER if changes[step.name]))


def measured_rewrites(simple: ir.Model, probe: CostProbe | str, reporter: Reporter, log: PassLog) -> Rewritten:
    """The graph after those rewrites that give it fewer kernels or bytes, compiled here with and without each."""
    selection = select_rewrites(
        simple,
        FASTER,
        probe if isinstance(probe, str) else probe.measure,
        lambda done, total: reporter.progress("comparing graph rewrites", done, total),
        needed=_needed(simple, probe),
    )
    for note in selection.notes:
        reporter.say(note)
    notes = (*selection.notes, f"graph rewrites compared by {probe}") if selection.compared else selection.notes
    return Rewritten(run_passes(simple, selection.kept, after=log.after(simple)), notes)


def require_parsable(model: ir.Model, request: BuildRequest) -> None:
    """Refuse a float graph with operators that the compiler of an asked target can't parse, before any data is seen.

    Only the compiler that builds ahead of time is asked, where it is installed.

    Raises:
        GpusqError: Names the operators, the first node and its module, and the targets.
    """
    asked = [target.name for target in request.targets if _AHEAD in target.ahead_of_time]
    if not asked or isinstance(find_api(_AHEAD), str):
        return
    with scratch_model(_lightened(model, request.float_type)) as path:
        faults = unparsed(path, _AHEAD)
    give_back()
    if not faults:
        return
    first = faults[0]
    names = ", ".join(dict.fromkeys(fault.operator or "a node" for fault in faults))
    modules = {node_name(node): module_of(node) for node in model.graph}
    places = some([f"{modules.get(fault.node) or 'the model itself'}, node {fault.node}" for fault in faults], 2)
    others = "" if len(asked) == len(request.targets) else f"; leave out --target {' --target '.join(asked)}"
    raise GpusqError(
        f"{_AHEAD} can't parse {names}, so no engine can be built for {', '.join(asked)}: {first.why}",
        place=places,
        hint=f"replace the operator in the model; or build model.onnx without an engine: --target none{others}",
    )


def _lightened(model: ir.Model, float_type: FloatPrecision) -> ir.Model:
    """What a compiler makes the same of, in little room: most weights are left out."""
    light = model.clone()
    share_weights(light)
    cut_constants(light)
    return run_passes(light, [CastToFloatType(float_type)])


def _needed(simple: ir.Model, probe: CostProbe | str) -> Mapping[str, str]:
    """Rewrites that are applied for another reason than speed, and that reason."""
    if isinstance(probe, str) or probe.float_type != "fp16" or not scales_scores(simple):
        return {}
    return {AttentionScale.name: "without it attention scores may overflow FP16"}


def select_rewrites(
    model: ir.Model,
    rewrites: Sequence[Pass],
    measure: Callable[[ir.Model], GraphCost] | str,
    progress: Callable[[int, int], None],
    *,
    needed: Mapping[str, str] = MappingProxyType({}),
) -> RewriteSelection:
    """A rewrite stays if the model has more kernels without it, or as many and moves at least 1 % more bytes.

    In order, each against the form that is the better one so far. Where nothing can be measured, all are kept.

    Args:
        model: The graph before any of them; left as it is.
        rewrites: Each may be left out.
        measure: The cost of a graph; or why there is none.
        progress: Hears how many of the forms are compiled.
        needed: By name, rewrites that stay whatever they cost, and why.
    """
    whole, found = _formed(model, rewrites)
    active = [step for step in rewrites if found[step.name]]
    notes = [f"{_named(step, found)} applied: {needed[step.name]}" for step in active if step.name in needed]
    tried = [step for step in active if step.name not in needed]
    if not tried:
        return RewriteSelection(kept=tuple(active), notes=tuple(notes))
    if isinstance(measure, str):
        return RewriteSelection(kept=tuple(active), notes=(*notes, *_unmeasured(tried, measure)))
    progress(0, len(tried) + 1)
    best = _measured(whole, measure)
    if isinstance(best, str):
        return RewriteSelection(kept=tuple(active), notes=(*notes, *_unmeasured(tried, best)))
    kept = active
    for done, step in enumerate(tried, 1):
        progress(done, len(tried) + 1)
        kept, best, verdict = _without(model, kept, step, best, measure)
        notes.append(f"{_named(step, found)} {verdict}")
    progress(len(tried) + 1, len(tried) + 1)
    left_out = tuple(step for step in active if step not in kept)
    return RewriteSelection(kept=tuple(kept), left_out=left_out, notes=tuple(notes), compared=True)


def _without(
    model: ir.Model, kept: list[Pass], step: Pass, best: GraphCost, measure: Callable[[ir.Model], GraphCost]
) -> tuple[list[Pass], GraphCost, str]:
    """The better of two forms, with a rewrite and without it: its rewrites, its cost, and why."""
    others = [other for other in kept if other is not step]
    form, changes = _formed(model, others)
    without = _measured(form, measure)
    verdict = f"{_verdict(best, without)}{_lost(changes)}"
    if isinstance(without, str) or _helps(best, without):
        return kept, best, verdict
    return others, without, verdict


def _formed(model: ir.Model, steps: Sequence[Pass]) -> tuple[ir.Model, Mapping[str, int]]:
    """The graph after some rewrites, and what each of them changed."""
    changes: dict[str, int] = {}
    form = run_passes(model, steps, after=lambda step, _, count: changes.__setitem__(step.name, count))
    return form, changes


def _named(step: Pass, found: Mapping[str, int]) -> str:
    return f"graph rewrite {step.name} ({counted(found[step.name], 'place')})"


def _measured(form: ir.Model, measure: Callable[[ir.Model], GraphCost]) -> GraphCost | str:
    """The cost of a form; or why it can't be compiled."""
    try:
        return measure(form)
    except GpusqError as error:
        return error.what


def _verdict(best: GraphCost, without: GraphCost | str) -> str:
    if isinstance(without, str):
        return f"applied; without it the model can't be compiled: {without}"
    verdict = "applied" if _helps(best, without) else "left out"
    return f"{verdict}: {_difference(best, without)}"


def _lost(changes: Mapping[str, int]) -> str:
    """Which of the other rewrites find nothing to do in the form without one."""
    lost = [name for name, count in changes.items() if not count]
    return f"; without it {' and '.join(lost)} has nothing to rewrite" if lost else ""


def _helps(built: GraphCost, without: GraphCost) -> bool:
    if built.kernels != without.kernels:
        return built.kernels < without.kernels
    return without.bytes_moved - built.bytes_moved >= _LEAST_SAVING * without.bytes_moved


def _difference(built: GraphCost, without: GraphCost) -> str:
    return (
        f"{built.kernels} kernels with it, {without.kernels} without; "
        f"{built.bytes_moved / 1e6:.1f} and {without.bytes_moved / 1e6:.1f} MB moved"
    )


def _unmeasured(active: Sequence[Pass], why: str) -> tuple[str, ...]:
    names = ", ".join(step.name for step in active)
    return (f"graph rewrites applied, kernel counts not compared ({why}): {names}",)
