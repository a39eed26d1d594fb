"""Which of the rewrites that are there for speed a model keeps: it is compiled with and without each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.artifacts.plan import FloatPrecision
from gpusq_deploy.artifacts.receipt import GraphCost
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.engines.api import BackendName, find_api
from gpusq_deploy.engines.cost import graph_cost, layers_at
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.files import save_model, scratch_folder
from gpusq_deploy.graph.light import share_weights
from gpusq_deploy.packing import Packed
from gpusq_deploy.passes.base import Pass, run_passes
from gpusq_deploy.passes.cast_remainder import CastRemainder
from gpusq_deploy.passes.pack_projections import PackProjections
from gpusq_deploy.request import BuildRequest, Reporter
from gpusq_deploy.targets import Target, find_target

_AHEAD: BackendName = "tensorrt-rtx"
_STAND_IN = "a100"
# With as many kernels, what moves less than this share fewer bytes is the same.
_LEAST_SAVING = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Yardstick:
    """What forms are compared by: kernels, then bytes moved, of an engine for `target` at one batch size.

    `stand_in` says that it stands for targets that nobody builds for here.
    """

    target: Target
    batch: int
    remainder: FloatPrecision
    stand_in: bool = False

    def measure(self, model: ir.Model) -> GraphCost:
        """Compile a float32 graph in the remainder's type: its cost. Weights are of no matter, so most are left out.

        Raises:
            GpusqError: It can't be compiled, or a constant doesn't fit the type.
        """
        light = model.clone()
        share_weights(light)
        with scratch_folder() as folder:
            path = Path(folder) / "model.onnx"
            save_model(run_passes(light, [CastRemainder(self.remainder)]), path)
            return graph_cost(layers_at(path, self.target, self.batch, backend=_AHEAD), batch=self.batch)

    def __str__(self) -> str:
        instead = ", which stands in for the targets" if self.stand_in else ""
        return f"tensorrt-rtx for {self.target.name}{instead}, {self.remainder}, batch {self.batch}, nothing timed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The rewrites that a model keeps, in order, and a note on each that found something to do."""

    kept: tuple[Pass, ...]
    left_out: tuple[Pass, ...] = ()
    notes: tuple[str, ...] = ()


def find_yardstick(request: BuildRequest) -> Yardstick | str:
    """For the first target that is built ahead of time, or another in its place; or why nothing is compared."""
    if request.rewrites == "all":
        return "--rewrites all"
    api = find_api(_AHEAD)
    if isinstance(api, str):
        return api
    chosen = next((target for target in request.targets if _AHEAD in target.ahead_of_time), None)
    return Yardstick(
        target=chosen or find_target(_STAND_IN),
        batch=request.batch.optimum,
        remainder=request.remainder,
        stand_in=chosen is None,
    )


def best_form(
    simple: ir.Model,
    rewrites: Sequence[Pass],
    packed: Packed,
    stored: SparsityReport,
    yardstick: Yardstick | str,
    reporter: Reporter,
) -> Packed:
    """The float graph with those rewrites that help it, packing among them; why, in its notes.

    Args:
        simple: The graph before them.
        rewrites: All of them but packing.
        packed: The graph after all of them.
        stored: The 2:4 state of its layers before packing.
        yardstick: What forms are compared by; or why they aren't.
        reporter: Who hears what was chosen.
    """
    packing = (PackProjections(packed.chosen),) if packed.chosen else ()
    form = choose_form(
        simple,
        (*rewrites, *packing),
        yardstick if isinstance(yardstick, str) else yardstick.measure,
        lambda done, total: reporter.progress("comparing forms", done, total),
    )
    for note in form.notes:
        reporter.say(note)
    notes = form.notes if isinstance(yardstick, str) or not form.notes else (*form.notes, f"compared by {yardstick}")
    if not form.left_out:
        return replace(packed, notes=(*packed.notes, *notes))
    model = run_passes(simple, form.kept)
    if {*packing} <= {*form.kept}:
        return replace(packed, model=model, notes=(*packed.notes, *notes))
    return Packed(model=model, stored=stored, notes=notes, declined=packed.declined)


def choose_form(
    model: ir.Model,
    rewrites: Sequence[Pass],
    measure: Callable[[ir.Model], GraphCost] | str,
    progress: Callable[[int, int], None],
) -> Form:
    """Leave out each rewrite without which the model has no more kernels, nor as many and moves more bytes.

    In order, each against the form that is the better one so far. Where nothing can be measured, all are kept.

    Args:
        model: The graph before any of them; left as it is.
        rewrites: Each may be left out.
        measure: The cost of a graph; or why there is none.
        progress: Hears how many of the forms are compiled.
    """
    found = _changes(model, rewrites)
    active = [step for step in rewrites if found[step.name]]
    if not active:
        return Form(kept=())
    if isinstance(measure, str):
        return Form(kept=tuple(active), notes=_unmeasured(active, measure))
    kept, notes = list(active), list[str]()
    try:
        progress(0, len(active) + 1)
        best = measure(run_passes(model, kept))
    except GpusqError as error:
        return Form(kept=tuple(active), notes=_unmeasured(active, error.what))
    for done, step in enumerate(active):
        progress(done + 1, len(active) + 1)
        places = f"{step.name} ({found[step.name]} places)"
        others = [other for other in kept if other is not step]
        try:
            without = measure(run_passes(model, others))
        except GpusqError as error:
            notes.append(f"{places} is applied; without it the model can't be compiled: {error.what}")
            continue
        if _helps(best, without):
            notes.append(f"{places} is applied: {_difference(best, without)}")
        else:
            notes.append(f"{places} is not applied, since it doesn't help: {_difference(best, without)}")
            kept, best = others, without
    progress(len(active) + 1, len(active) + 1)
    left_out = tuple(step for step in active if step not in kept)
    return Form(kept=tuple(kept), left_out=left_out, notes=tuple(notes))


def _changes(model: ir.Model, rewrites: Sequence[Pass]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    run_passes(model, rewrites, after=lambda step, _, count: found.__setitem__(step.name, count))
    return found


def _helps(built: GraphCost, without: GraphCost) -> bool:
    if built.kernels != without.kernels:
        return built.kernels < without.kernels
    return without.bytes_moved - built.bytes_moved >= _LEAST_SAVING * without.bytes_moved


def _difference(built: GraphCost, without: GraphCost) -> str:
    return (
        f"{built.kernels} kernels with it and {without.kernels} without, "
        f"{built.bytes_moved / 1e6:.1f} and {without.bytes_moved / 1e6:.1f} MB moved"
    )


def _unmeasured(active: Sequence[Pass], why: str) -> tuple[str, ...]:
    names = ", ".join(step.name for step in active)
    return (f"{names}: applied without comparing the model's kernels with and without: {why}",)
