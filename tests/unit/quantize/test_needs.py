"""What deciders ask to see, and that what smoothing makes of it is what is seen on the smoothed graph."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models

from gpusq_deploy.artifacts.recipe import Recipe, load_recipe
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.calibration.data import ArrayFile
from gpusq_deploy.calibration.instrument import moved_from
from gpusq_deploy.calibration.needs import Needs, Observations, RangeNeed, needs_of_layers
from gpusq_deploy.calibration.observe import SPREAD_SAMPLES, observe
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.progress import SILENT
from gpusq_deploy.quantize.int8_outputs import Int8Outputs, output_site
from gpusq_deploy.quantize.needs import observations_needed, product_amax
from gpusq_deploy.quantize.overflow_search import bounds
from gpusq_deploy.quantize.planning import layers_to_quantize
from gpusq_deploy.quantize.prepare import PlanInputs, plan_inputs
from gpusq_deploy.quantize.quant_request import QuantRequest
from gpusq_deploy.quantize.sites import Int8OutputRequest, attentions_to_quantize, sites_of

IMAGES = ArrayFile(name="noise", values=tiny_models.images(6))
SMOOTHED = """
schema = "gpusq.recipe/1"
name = "all"
description = "Every Linear smoothed, with its attention's operands."

[[rule]]
kind = "linear"
smooth = true
rounding = "second-order"
reason = "a test"

[attention]
placement = "linear+qkv"
reason = "a test"
"""


@functools.cache
def model() -> ir.Model:
    return run_passes(tiny_models.exported_vit().model, CANONICAL)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "all.toml"
    path.write_text(SMOOTHED)
    return load_recipe(path)


def request_of(recipe: Recipe, *, outputs: bool = False) -> QuantRequest:
    wish = Int8Outputs(wish=Int8OutputRequest(least_db=0), sparsity=SparsityReport(source="", layers=()))
    return QuantRequest(
        layers=layers_to_quantize(weighted_layers(model()), recipe),
        recipe=recipe,
        calibrators={},
        float_type="fp16",
        outputs=wish if outputs else None,
    )


@functools.cache
def planned(path: str) -> tuple[PlanInputs, Observations]:
    request = request_of(load_recipe(Path(path)))
    seen = observe(model(), observations_needed(model(), request), IMAGES)
    return plan_inputs(model(), request, seen, SILENT), seen


@pytest.fixture
def inputs(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[PlanInputs, Observations]:
    path = tmp_path_factory.getbasetemp() / "needs.toml"
    path.write_text(SMOOTHED)
    return planned(str(path))


def measured(graph: ir.Model) -> dict[str, float]:
    """The largest magnitude of every float tensor, with every tensor an output of ONNX's own."""
    found = observe(graph, Needs(magnitudes=True), IMAGES)
    return dict(found.magnitudes)


@pytest.mark.slow
def test_ranges_of_sites_are_those_of_the_smoothed_graph(
    recipe: Recipe, inputs: tuple[PlanInputs, Observations]
) -> None:
    """Seen before the smoothing, once; measured after it, for the comparison."""
    prepared, _ = inputs
    assert {tensor.place.producer for tensor in prepared.smoothed} >= {"layer-norm", "gelu", "attention"}
    sites = sites_of(attentions_to_quantize(prepared.model, recipe), recipe)
    assert {site.role for site in sites} == {"query", "key", "value"}
    needs = Needs(ranges={site.tensor: RangeNeed(label=site.role) for site in sites})
    after = observe(prepared.model, needs, IMAGES).table
    assert after is not None
    assert prepared.table is not None
    for tensor, entry in after.by_tensor().items():
        assert prepared.table.by_tensor()[tensor].amax == pytest.approx(entry.amax, rel=1e-4), tensor


@pytest.mark.slow
def test_ranges_of_products_are_those_of_the_smoothed_graph(inputs: tuple[PlanInputs, Observations]) -> None:
    prepared, _ = inputs
    layers = [layer for layer in weighted_layers(model()) if output_site(model(), layer) is not None]
    sites = [site for layer in layers if (site := output_site(model(), layer)) is not None]
    seen = observe(model(), Needs(moments={site.tensor: False for site in sites}), IMAGES)
    now = {layer.node: layer for layer in prepared.layers}
    shifted = 0
    for layer, site in zip(layers, sites, strict=True):
        after = output_site(prepared.model, now[layer.node])
        assert after is not None
        expected = observe(prepared.model, Needs(moments={after.tensor: False}), IMAGES).moments[after.tensor]
        largest = float(max(np.abs(expected.low).max(), np.abs(expected.high).max()))
        before = seen.moments[site.tensor]
        shifted += not np.isclose(max(np.abs(before.low).max(), np.abs(before.high).max()), largest, rtol=1e-3)
        got = product_amax(model(), site, prepared.smoothed, seen.moments)
        assert got == pytest.approx(largest, rel=1e-3), layer.layer
    assert shifted, "smoothing changes some products, or this shows nothing"


@pytest.mark.slow
def test_bounds_hold_for_every_tensor_of_the_smoothed_graph(inputs: tuple[PlanInputs, Observations]) -> None:
    prepared, seen = inputs
    found = bounds(prepared.model, seen.magnitudes, prepared.moved)
    after = measured(prepared.model)
    assert set(after) <= set(found), sorted(set(after) - set(found))
    for tensor, largest in after.items():
        assert found[tensor] >= largest * (1 - 1e-4), tensor
    # What is only moved counts as much as all that it is taken from.
    changed = {*prepared.moved, *moved_from(prepared.model)}
    same = [tensor for tensor in after if tensor in seen.magnitudes and tensor not in changed]
    assert len(same) > len(after) / 3
    for tensor in same:
        assert found[tensor] == pytest.approx(after[tensor], rel=1e-3), tensor


def test_what_was_seen_is_not_asked_again() -> None:
    layers = weighted_layers(model())
    plain = needs_of_layers(layers)
    seen = Observations(needs=plain | Needs(moments={"x": True}))
    assert not seen.lacking(plain | Needs(moments={"x": False}))
    more = seen.lacking(plain | Needs(moments={"x": True, "y": False}, magnitudes=True))
    assert (more.ranges, dict(more.moments), more.magnitudes) == ({}, {"y": False}, True)
    assert dict((Needs(moments={"y": False}) | Needs(moments={"y": True})).moments) == {"y": True}


def test_magnitudes_alone_are_seen_on_a_few_samples() -> None:
    text = "g (float[B,3,1,4] input) => (float[B,3,1,4] y) { [act] h = Relu(input) y = Add(h, h) }"
    values = np.linspace(-1, 9, 40 * 12, dtype=np.float32).reshape(40, 3, 1, 4)
    graph = tiny_models.graph(text)
    seen = observe(graph, Needs(magnitudes=True), ArrayFile(name="rows", values=values))
    assert seen.table is not None
    assert seen.table.images == SPREAD_SAMPLES
    assert seen.looked == "seen on 8 samples of rows"
    ranges = observe(graph, Needs(ranges={"h": RangeNeed(label="act")}), ArrayFile(name="rows", values=values))
    later = ranges.joined(seen)
    assert later.table is not None
    assert later.table.images == len(values)
    assert later.table.ranges[0].amax == pytest.approx(9)
    assert later.magnitudes["h"] == seen.magnitudes["h"]
    both = observe(graph, Needs(moments={"h": False}, magnitudes=True), ArrayFile(name="rows", values=values))
    assert both.table is not None
    assert both.table.images == len(values)
    assert both.moments["h"].high.max() == pytest.approx(9)
