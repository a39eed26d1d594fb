"""What is calibrated on the simple form reaches the layers of whatever form is built."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import planning
import pytest
import tiny_families
import tiny_models

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.calibration.instrument import VALUES_SUFFIX, instrumented
from gpusq_deploy.calibration.simple_form import SimpleForm
from gpusq_deploy.calibration.stored_ranges import table_from_recorded
from gpusq_deploy.compile.qkv_merge import merge_qkv
from gpusq_deploy.frontend.export.onnx_export import example_input, export_float_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.clean import Clean
from gpusq_deploy.graph.passes.merge_qkv import MergeQkv, find_projections
from gpusq_deploy.graph.passes.pipelines import FASTER, SIMPLE
from gpusq_deploy.sparsity.graph_check import graph_sparsity

BATCH = BatchRange(minimum=1, optimum=2, maximum=4)


def attention() -> ir.Model:
    """q, k and v of one input, the nodes `qq`, `kk` and `vv`."""
    random = np.random.default_rng(0)
    weights = {f"w{name}": random.standard_normal((8, 8), dtype=np.float32) for name in "qkv"}
    constants: dict[str, tiny_models.Array] = {"heads": np.array([0, 0, 2, 4]), "bq": np.zeros(8, np.float32)}
    return run_passes(tiny_models.graph(tiny_models.ATTENTION, **constants, **weights), [Clean()])


def values_of(model: ir.Model, feeds: dict[str, tiny_models.Array], tensors: set[str]) -> dict[str, tiny_models.Array]:
    found = tiny_models.run_model(instrumented(model, sorted(tensors), whole=tensors), feeds)
    return {tensor: found[f"{tensor}{VALUES_SUFFIX}"] for tensor in tensors}


def test_a_packed_layer_has_the_largest_of_its_parts_recorded_ranges() -> None:
    simple = attention()
    chosen = find_projections(simple)
    layers = weighted_layers(run_passes(simple, [MergeQkv(chosen)]))
    before = SimpleForm(model=simple, parts={triple.node: triple.nodes for triple in chosen}).counterparts(layers)
    recorded = {"qq": 2.0, "kk": 3.0, "vv": 2.5}
    table = table_from_recorded(recorded, before.layers, source="m", origins=dict.fromkeys(recorded, "someone"))
    (found,) = before.carried(table, layers).ranges
    assert (found.tensor, found.layer, found.amax) == (layers[0].input, layers[0].layer, 3.0)
    assert found.origin == "recorded in m: someone"


def test_a_range_goes_to_the_tensor_that_the_layer_reads_now() -> None:
    simple = tiny_models.graph(
        "g (float[B,2,4] x) => (float[B,2,4] y) { n = Neg(x) [fc] y = MatMul(n, w) }", w=np.eye(4, dtype=np.float32)
    )
    built = tiny_models.graph(
        "g (float[B,2,4] x) => (float[B,2,4] y) { a = Neg(x) b = Identity(a) [fc] y = MatMul(b, w) }",
        w=np.eye(4, dtype=np.float32),
    )
    layers = weighted_layers(built)
    before = SimpleForm(model=simple).counterparts(layers)
    assert before.input_of(layers[0]) == "n"
    (found,) = before.carried(planning.table({"n": 2.0}), layers).ranges
    assert (found.tensor, found.layer, found.amax) == ("b", "fc", 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["swin", "torchvision-swin", "transformers-swin", "transformers-vit"])
def test_every_layer_reads_the_numbers_of_its_counterpart(family: str) -> None:
    """By ONNX Runtime, in the simple form and with all rewrites: the same numbers in any order, but for rounding."""
    checkpoint = tiny_families.checkpoint(family)
    simple = run_passes(export_float_model(checkpoint, batch=BATCH), SIMPLE)
    model = run_passes(simple, FASTER)
    recipe = planning.EVERYTHING
    packed = merge_qkv(model, graph_sparsity(model, source="m", recipe=recipe), recipe, None)
    layers = weighted_layers(packed.model)
    before = SimpleForm(model=simple, parts=packed.parts).counterparts(layers)
    feeds: dict[str, tiny_models.Array] = {str(simple.graph.inputs[0].name): example_input(checkpoint, 2).numpy()}
    old = values_of(simple, feeds, {layer.input for layer in before.layers})
    new = values_of(packed.model, feeds, {layer.input for layer in layers})
    for layer in layers:
        assert len({part.input for part in before.by_node[layer.node]}) == 1
        wanted, got = np.sort(old[before.input_of(layer)], axis=None), np.sort(new[layer.input], axis=None)
        # Sums of a few hundred float32 products, taken in another order.
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max(), err_msg=layer.layer)
