"""Recipes that leave some layers float: the plan and the engine agree, and data is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import run_main

from gpusq_deploy.bundle import read_bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.recipe import load_recipe

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("recipe", ["mixed_wi8_ai8", "fused_wi8_ai8"])
def test_what_stays_float_is_within_the_share_and_built_so(
    sparse: Path, photos: Path, tmp_path: Path, recipe: str
) -> None:
    out = tmp_path / "m.gpusq"
    done = run_main(build, sparse, "--int8", "--sparse", "--recipe", recipe, "--calib", photos, "--out", out)
    assert done.code == 0, done.err
    bundle = read_bundle(out)
    linear = [entry for entry in bundle.plan.layers if entry.kind == "linear"]
    floats = [entry for entry in linear if entry.precision == "fp16"]
    assert floats
    assert sum(entry.macs for entry in floats) <= 0.1 * sum(entry.macs for entry in linear)
    # Where the layers behind attentions fill the share, nothing is measured.
    why = {"mixed_wi8_ai8": "dB", "fused_wi8_ai8": "it reads an attention's result"}[recipe]
    assert all("mixed" in entry.precision_reason and why in entry.precision_reason for entry in floats)
    (engine,) = bundle.receipt.engines
    built = {layer.layer: layer.precision for layer in engine.layers}
    assert {entry.layer: built[entry.layer] for entry in linear} == {entry.layer: entry.precision for entry in linear}


def test_without_data_there_is_nothing_to_measure_on(sparse: Path, bundle: Path, tmp_path: Path) -> None:
    options = ("--recipe", "mixed_wi8_ai8", "--ranges", bundle / "calibration.json", "--out", tmp_path / "m.gpusq")
    done = run_main(build, sparse, "--int8", *options)
    assert done.code == 5
    assert "measure" in done.err
    assert "--calib" in done.err


def test_the_shipped_recipes_differ_from_the_default_in_their_share_and_one_in_the_patch_embedding() -> None:
    default, fused = load_recipe(None).rules, load_recipe(Path("fused_wi8_ai8")).rules
    assert load_recipe(Path("mixed_wi8_ai8")).rules == default
    changed = [(one, other) for one, other in zip(default, fused, strict=True) if one != other]
    assert [(one.kind, one.precision, other.kind, other.precision) for one, other in changed] == [
        ("patch_embed", "int8", "patch_embed", "float")
    ]
