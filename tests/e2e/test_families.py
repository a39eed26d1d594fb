"""Every family exports, answers what torch answers, and has its Linear layers built in INT8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tiny_families
from tiny_families import FAMILIES

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.recipe import Recipe, Rule
from gpusq_deploy.bundle.receipt import built_layers
from gpusq_deploy.calibration.data import ArrayFile
from gpusq_deploy.calibration.observe import collect_ranges
from gpusq_deploy.engines.builder import build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.layer_classes import totals
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.frontend.export.onnx_export import example_input, export_float_model, reference_outputs
from gpusq_deploy.graph.attention import find_attentions
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.quantize.planning import PlanRequest, layers_to_quantize, make_plan
from gpusq_deploy.quantize.qkv_merge import merge_qkv
from gpusq_deploy.sparsity.graph_check import graph_sparsity

BATCH = BatchRange(minimum=2, optimum=2, maximum=2)
LINEAR = Recipe(
    schema="gpusq.recipe/1", name="linear", description="", rules=(Rule(kind="linear", reason="they take most time"),)
)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_as_torch_and_is_built_in_int8(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform", exc_type=ImportError)
    checkpoint, family = tiny_families.checkpoint(name), FAMILIES[name]
    model = run_passes(export_float_model(checkpoint, batch=BATCH), CANONICAL)
    assert len(find_attentions(model)) == family.attentions
    images = array_from_tensor(example_input(checkpoint, 2))
    noise = ArrayFile(name="noise", values=images)
    report = graph_sparsity(model, source="", recipe=LINEAR)
    packed = merge_qkv(model, report, LINEAR, None)
    assert len(packed.chosen) == family.packed
    layers = weighted_layers(packed.model)
    table = collect_ranges(packed.model, layers_to_quantize(layers, LINEAR), noise, open_model=open_onnx)

    path = tmp_path / "model.onnx"
    save_model(packed.model, path)
    assert difference(path, images, reference_outputs(checkpoint, images)) < 1e-4

    asked = PlanRequest(recipe=LINEAR, quantize=True, sparse=False, float_type="fp16")
    plan = make_plan(layers, asked, table=table, sparsity=packed.stored)
    save_model(run_passes(packed.model, [Quantize(plan), CastToFloatType("fp16")]), path)
    engine = build_engine(path, find_target("a100"), BuildSettings(batch=BATCH)).layers
    linear = {layer.node: layer.macs for layer in plan.layers if layer.kind == "linear"}
    int8 = sum(linear.get(layer.node, 0) for layer in built_layers(plan, engine) if layer.precision == "int8")
    assert int8 >= 0.95 * sum(linear.values())
    # More than were found: TensorRT-RTX also fuses one whose queries are constant, in DETR's first decoder layer.
    assert totals(engine).attention_fused >= family.attentions


def difference(path: Path, images: npt.NDArray[np.float32], wanted: tuple[npt.NDArray[np.float32], ...]) -> float:
    session = open_onnx(path)
    answers = list(session.run({session.inputs[0].name: images}).values())
    session.close()
    return worst(list(zip(wanted, answers, strict=True)))


def worst(pairs: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]) -> float:
    """Relative to the largest value of each output; Python's max() would pass over a NaN."""
    found = [float(np.max(np.abs(ref - got)) / np.max(np.abs(ref))) for ref, got in pairs]
    assert np.isfinite(found).all()
    return max(found)


def test_an_output_that_is_not_a_number_is_no_small_difference() -> None:
    good = np.ones(3, np.float32)
    with pytest.raises(AssertionError):
        worst([(good, good), (good, np.full(3, np.nan, np.float32))])
