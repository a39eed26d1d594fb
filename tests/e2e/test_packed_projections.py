"""transformers' ViT, whose query, key and value are three layers: packed, with everything that a recipe can ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_families
from commands import run_main

from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.calibrate import main as calibrate
from gpusq_deploy.cli.inspect import main as inspect

pytestmark = pytest.mark.slow

RECIPE = """
schema = "gpusq.recipe/1"
name = "everything"
description = "a test"

[[rule]]
kind = "linear"
output = "int8"
reason = "every Linear, and what it writes"

[attention]
placement = "full"
accept_loss = true
reason = "to see"
"""
ATTENTIONS = [f"vit.layers.{block}.attention" for block in range(2)]


def test_attentions_and_outputs_of_packed_projections_are_int8(photos: Path, tmp_path: Path) -> None:
    saved, recipe, out = tmp_path / "saved", tmp_path / "recipe.toml", tmp_path / "m.gpusq"
    module: Any = tiny_families.checkpoint("transformers-vit").module
    module.save_pretrained(saved)
    recipe.write_text(RECIPE)
    done = run_main(build, saved, "--int8", "--recipe", recipe, "--calib", photos, "--out", out)
    assert done.code == 0, done.err
    bundle = read_bundle(out)
    decisions = {decision.layer: decision for decision in bundle.plan.layers}
    for attention in ATTENTIONS:
        packed = decisions[f"{attention}.q_proj+k_proj+v_proj"]
        assert packed.precision == "int8"
        assert packed.weight is not None
        assert packed.weight.one_scale, packed.output_reason
    assert {placed.role for placed in bundle.plan.placed} >= {"query", "key", "softmax", "value", "output"}
    assert "merged 6 Q/K/V projections into 2 GEMMs" in bundle.plan.notes
    # The drift map sees them, in the float graph and in the built one.
    assert bundle.receipt.verification is not None
    assert any("q_proj+k_proj+v_proj" in layer.module for layer in bundle.receipt.verification.layers)
    shown = run_main(inspect, out, "--layer", f"{ATTENTIONS[0]}.k_proj")
    assert shown.code == 5
    assert f"did you mean {ATTENTIONS[0]}.q_proj+k_proj+v_proj?" in shown.err


def test_stored_ranges_reach_a_packed_product_in_whatever_form(photos: Path, tmp_path: Path) -> None:
    """Equal to the bit, for both commands run the simple form, in which nothing is packed; see test_calibrate.py."""
    saved, ranges = tmp_path / "saved", tmp_path / "ranges.json"
    module: Any = tiny_families.checkpoint("transformers-swin").module
    module.save_pretrained(saved)
    assert run_main(calibrate, saved, "--calib", photos, "--out", ranges).code == 0
    amax: list[dict[str, float]] = []
    for name, options in {"stored": ("--ranges", ranges), "own": ("--recipe", "plain_wi8_ai8")}.items():
        done = run_main(build, saved, "--int8", "--calib", photos, *options, "--out", tmp_path / name)
        assert done.code == 0, done.err
        layers = read_bundle(tmp_path / name).plan.layers
        amax.append({layer.layer: layer.activation.amax for layer in layers if layer.activation is not None})
    assert amax[0] == amax[1]
    assert any("+" in layer for layer in amax[0])
