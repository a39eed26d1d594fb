"""Weights on the grid that they were trained on, against torch's own fake quantisation."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt
import planning
import pytest
import tiny_models
import torch

from gpusq_deploy.graph.layers import GraphLayer, weighted_layers
from gpusq_deploy.graph.values import array_of
from gpusq_deploy.numerics import dequantize
from gpusq_deploy.quantize.kept_grids import Grid, with_kept_grids
from gpusq_deploy.quantize.mixed_precision import PlannedWeights

Array = npt.NDArray[np.float32]


def grid_of(rows: Array, amax: Array) -> Grid:
    magnitudes = np.abs(rows.reshape(len(rows), -1))
    return Grid(amax.astype(np.float32), magnitudes.max(axis=1), magnitudes.sum(axis=1))


@pytest.fixture(scope="module")
def planned() -> tuple[PlannedWeights, tuple[GraphLayer, ...]]:
    model = tiny_models.exported_vit().model
    layers = weighted_layers(model)
    ranges = planning.table({layer.input: 4.0 for layer in layers})
    return PlannedWeights(planning.plan_for(model, ranges), {}), layers


def rows_of(layer: GraphLayer) -> Array:
    values = array_of(tiny_models.exported_vit().model.graph.initializers[layer.weight]).astype(np.float32)
    return values if layer.channel_axis == 0 else values.T


def test_codes_are_those_of_the_recorded_grid(planned: tuple[PlannedWeights, tuple[GraphLayer, ...]]) -> None:
    plan, layers = planned
    layer = next(layer for layer in layers if layer.layer == "blocks.0.mlp.fc1")
    rows = rows_of(layer)
    amax = 1.7 * np.abs(rows).max(axis=1)
    found = with_kept_grids(plan, tiny_models.exported_vit().model, {layer.layer: grid_of(rows, amax)})
    kept = found.rounded[layer.node]
    zeros = torch.zeros(len(rows), dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(rows.copy()), torch.from_numpy((amax / 127).astype(np.float32)), zeros, 0, -127, 127
    )
    np.testing.assert_allclose(dequantize(kept.codes, kept.scale, axis=0), expected, rtol=0, atol=1e-7)
    assert "weights of 1 layer are on the grid that the checkpoint records" in found.plan.notes


def test_a_graph_that_scales_channels_scales_their_grid(planned: tuple[PlannedWeights, tuple[GraphLayer, ...]]) -> None:
    """As folding a BatchNorm does: the codes stay the same."""
    plan, layers = planned
    layer = next(layer for layer in layers if layer.layer == "blocks.0.mlp.fc1")
    rows = rows_of(layer)
    factor = np.linspace(-2, 2, len(rows), dtype=np.float32)[:, None]
    before = (rows / factor).astype(np.float32)
    amax = 1.3 * np.abs(before).max(axis=1)
    found = with_kept_grids(plan, tiny_models.exported_vit().model, {layer.layer: grid_of(before, amax)})
    scale = found.rounded[layer.node].scale
    np.testing.assert_allclose(scale, amax * np.abs(factor[:, 0]) / 127, rtol=1e-5)


def test_weights_that_were_changed_otherwise_are_told(planned: tuple[PlannedWeights, tuple[GraphLayer, ...]]) -> None:
    plan, layers = planned
    layer = next(layer for layer in layers if layer.layer == "blocks.0.mlp.fc1")
    rows = rows_of(layer).copy()
    grid = grid_of(rows[:, ::2], np.abs(rows).max(axis=1))
    found = with_kept_grids(plan, tiny_models.exported_vit().model, {layer.layer: grid})
    assert layer.node not in found.rounded
    assert [note for note in found.plan.notes if "blocks.0.mlp.fc1 is not kept" in note]


def test_merged_projections_keep_the_grids_of_their_parts(
    planned: tuple[PlannedWeights, tuple[GraphLayer, ...]],
) -> None:
    plan, layers = planned
    layer = next(layer for layer in layers if layer.layer == "blocks.0.attn.qkv")
    names = ["blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v"]
    merged = [
        msgspec.structs.replace(entry, layer="blocks.0.attn.q+k+v") if entry.layer == layer.layer else entry
        for entry in plan.plan.layers
    ]
    parts = np.split(rows_of(layer), 3)
    grids = {name: grid_of(part, 2 * np.abs(part).max(axis=1)) for name, part in zip(names, parts, strict=True)}
    asked = PlannedWeights(msgspec.structs.replace(plan.plan, layers=tuple(merged)), {})
    found = with_kept_grids(asked, tiny_models.exported_vit().model, grids)
    expected = np.concatenate([grids[name].amax for name in names]) / 127
    np.testing.assert_allclose(found.rounded[layer.node].scale, expected, rtol=1e-6)
    assert not with_kept_grids(asked, tiny_models.exported_vit().model, {names[0]: grids[names[0]]}).rounded
