"""Decide: what every layer becomes and why, and the weights that are rounded for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpusq_deploy.artifacts import QuantPlan, Recipe, SparsityReport
from gpusq_deploy.calibration import CalibrationInputs
from gpusq_deploy.compile.observe_stage import Observed
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.compile.target_checks import require_possible
from gpusq_deploy.graph import PassLog, RoundedWeight
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import (
    ActivationSites,
    PlanInputs,
    PlanRequest,
    decide,
    find_fp16_overflow,
    make_plan,
    note_others,
    plan_inputs,
    with_kept_grids,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decisions:
    """All that the built graph follows from.

    Attributes:
        plan: Every decision and its reason.
        rounded: Weights that were rounded with regard to the data, by node.
        inputs: The smoothed float graph, its ranges, and what smoothing did.
        stored: The 2:4 state of that graph's layers.
        recipe: The recipe.
    """

    plan: QuantPlan
    rounded: Mapping[str, RoundedWeight]
    inputs: PlanInputs
    stored: SparsityReport
    recipe: Recipe


def decide_build(
    request: BuildRequest, observed: Observed, data: CalibrationInputs, reporter: Reporter, log: PassLog
) -> Decisions:
    """Smooth, find what FP16 can't hold, plan, and round.

    Raises:
        GpusqError: See `make_plan`; or no target can run the plan.
    """
    graph, seen = observed.graph, observed.seen
    inputs = plan_inputs(graph.model, observed.wanted, seen, reporter, log)
    asked = PlanRequest(
        recipe=observed.recipe, quantize=request.quantize, sparse=request.sparse, float_type=request.float_type
    )
    overflow = find_fp16_overflow(inputs, seen, request.float_type, reporter)

    def planned(placements: ActivationSites) -> QuantPlan:
        return make_plan(
            inputs.layers, asked, table=inputs.table, sparsity=graph.stored, placements=placements, wide=overflow
        )

    decided = decide(planned, inputs, observed.recipe, seen, data.calibrate, reporter)
    plan, rounded = with_kept_grids(decided, inputs.model, observed.grids)
    plan = note_others(graph.noted(plan, observed.notes), inputs.model)
    require_possible(plan, request.targets)
    return Decisions(plan=plan, rounded=rounded, inputs=inputs, stored=graph.stored, recipe=observed.recipe)
