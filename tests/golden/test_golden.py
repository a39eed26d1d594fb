"""Plans and graphs of a tiny model, as text: a refactoring must leave them byte-identical."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from tiny_models import exported_vit

from gpusq_deploy.artifacts.base import json_from_value
from gpusq_deploy.artifacts.plan import FloatPrecision, QuantPlan
from gpusq_deploy.artifacts.recipe import load_recipe
from gpusq_deploy.calibration.stored_ranges import table_from_recorded
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.quantize.planning import PlanRequest, make_plan
from gpusq_deploy.sparsity.graph_check import graph_sparsity

DATA = Path(__file__).parent / "data"


def canonical() -> ir.Model:
    return run_passes(exported_vit().model, CANONICAL)


def tiny_plan(float_type: FloatPrecision) -> QuantPlan:
    """The default recipe on recorded ranges: nothing measured, so nothing that differs between processors."""
    model = canonical()
    layers = weighted_layers(model)
    recipe = load_recipe(None)
    recorded = {layer.layer: 1.0 + index / 8 for index, layer in enumerate(layers)}
    return make_plan(
        layers,
        PlanRequest(recipe=recipe, quantize=True, sparse=False, float_type=float_type),
        table=table_from_recorded(recorded, layers, source="tiny.pt"),
        sparsity=graph_sparsity(model, source="tiny.pt", recipe=recipe),
    )


def text_of(model: ir.Model) -> str:
    """One line per node: operator, name, inputs, outputs with types and shapes."""
    lines = [f"input {value.name}: {value.dtype}{value.shape}" for value in model.graph.inputs]
    for node in model.graph:
        inputs = ", ".join("" if value is None else str(value.name) for value in node.inputs)
        outputs = ", ".join(f"{value.name}: {value.dtype}{value.shape}" for value in node.outputs)
        lines.append(f"{node.op_type} {node.name} ({inputs}) -> {outputs}")
    lines += [f"output {value.name}: {value.dtype}{value.shape}" for value in model.graph.outputs]
    return "\n".join(lines) + "\n"


def compare(request: pytest.FixtureRequest, name: str, got: str) -> None:
    path = DATA / name
    if request.config.getoption("--update-golden"):
        path.write_text(got)
    assert got == path.read_text(), f"{name} changed; if that is meant, run pytest tests/golden --update-golden"


@pytest.mark.slow
@pytest.mark.parametrize("float_type", ["fp16", "bf16", "fp32"])
def test_the_plan(request: pytest.FixtureRequest, float_type: FloatPrecision) -> None:
    compare(request, f"plan-{float_type}.json", json_from_value(tiny_plan(float_type)).decode())


@pytest.mark.slow
def test_the_graph(request: pytest.FixtureRequest) -> None:
    plan = tiny_plan("fp16")
    compare(request, "graph-fp16.txt", text_of(run_passes(canonical(), [Quantize(plan), CastToFloatType("fp16")])))
