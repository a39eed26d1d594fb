"""Plans for tests: every layer of a graph in INT8, with ranges that are given or measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import tiny_models

from gpusq_deploy.artifacts.calibration import CalibrationTable, TensorRange
from gpusq_deploy.artifacts.plan import FloatPrecision, QuantPlan
from gpusq_deploy.artifacts.recipe import Recipe, Rule
from gpusq_deploy.calibration.data import ArrayFile
from gpusq_deploy.calibration.observe import collect_ranges
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.quantize.planning import PlanRequest, make_plan
from gpusq_deploy.sparsity.graph_check import graph_sparsity

EVERYTHING = Recipe(
    schema="gpusq.recipe/1", name="everything", description="every layer in INT8", rules=(Rule(reason="all of them"),)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """A float graph, the plan for it, and the graph that Quantize makes of it."""

    before: ir.Model
    after: ir.Model
    plan: QuantPlan


def table(ranges: Mapping[str, float]) -> CalibrationTable:
    """A table of the given ranges, by tensor."""
    entries = tuple(TensorRange(tensor=name, layer=name, amax=amax, origin="given") for name, amax in ranges.items())
    return CalibrationTable(source="given", digest="", images=0, observer="given", ranges=entries)


def measured(model: ir.Model) -> CalibrationTable:
    """Ranges of the tiny ViT's layers on seeded noise."""
    source = ArrayFile(name="noise", values=tiny_models.images(8, seed=3))
    return collect_ranges(model, weighted_layers(model), source, open_model=open_onnx)


def plan_for(
    model: ir.Model, ranges: CalibrationTable, *, float_type: FloatPrecision = "fp32", recipe: Recipe = EVERYTHING
) -> QuantPlan:
    """The plan for a graph, without sparsity."""
    layers = weighted_layers(model)
    report = graph_sparsity(model, source="test", recipe=recipe)
    request = PlanRequest(recipe=recipe, quantize=True, sparse=False, float_type=float_type)
    return make_plan(layers, request, table=ranges, sparsity=report)


def quantized(model: ir.Model, ranges: CalibrationTable, *, float_type: FloatPrecision = "fp32") -> Quantized:
    """The graph with every layer in INT8."""
    plan = plan_for(model, ranges, float_type=float_type)
    return Quantized(before=model, after=run_passes(model, [Quantize(plan)]), plan=plan)
