"""Recipes that leave some layers float: the plan and the engine agree, and data is asked for."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from commands import run_main

from gpusq_deploy.artifacts.recipe import load_recipe
from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.cli.build import main as build

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
    why = {"mixed_wi8_ai8": "noise sums to most", "fused_wi8_ai8": "it reads an attention's result"}[recipe]
    assert all("mixed" in entry.precision_reason for entry in floats)
    assert all("dB of its residual stream" in entry.precision_reason for entry in floats)
    assert any(why in entry.precision_reason for entry in floats)
    (engine,) = bundle.receipt.engines
    built = {layer.layer: layer.precision for layer in engine.layers}
    assert {entry.layer: built[entry.layer] for entry in linear} == {entry.layer: entry.precision for entry in linear}


def test_noise_at_the_output_is_measured_by_running_layers(sparse: Path, photos: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "runs.toml", tmp_path / "m.gpusq"
    shipped = resources.files("gpusq_deploy.calibration").joinpath("recipes/mixed_wi8_ai8.toml").read_text("utf-8")
    recipe.write_text(shipped.replace("[mixed]", '[mixed]\nmeasure = "output"'), "utf-8")
    done = run_main(build, sparse, "--int8", "--recipe", recipe, "--calib", photos, "--out", out)
    assert done.code == 0, done.err
    assert "each alone in INT8" in done.err
    floats = [entry for entry in read_bundle(out).plan.layers if "mixed" in entry.precision_reason]
    assert floats
    assert not any("residual stream" in entry.precision_reason for entry in floats)


def test_given_ranges_take_one_more_look_at_the_data(sparse: Path, photos: Path, bundle: Path, tmp_path: Path) -> None:
    options = ("--recipe", "mixed_wi8_ai8", "--ranges", bundle / "calibration.json", "--out", tmp_path / "m.gpusq")
    done = run_main(build, sparse, "--int8", "--calib", photos, *options)
    assert done.code == 0, done.err
    reasons = [entry.precision_reason for entry in read_bundle(tmp_path / "m.gpusq").plan.layers]
    assert any("dB of its residual stream" in reason for reason in reasons)


def test_without_data_there_is_nothing_to_measure_on(sparse: Path, bundle: Path, tmp_path: Path) -> None:
    options = ("--recipe", "mixed_wi8_ai8", "--ranges", bundle / "calibration.json", "--out", tmp_path / "m.gpusq")
    done = run_main(build, sparse, "--int8", *options)
    assert done.code == 5
    assert "measure" in done.err
    assert "--calib" in done.err


@pytest.mark.parametrize("recipe", ["mixed_wi8_ai8", "fused_wi8_ai8"])
def test_the_shipped_recipes_differ_from_the_default_in_their_share_and_the_patch_embedding(recipe: str) -> None:
    default, other = load_recipe(None).rules, load_recipe(Path(recipe)).rules
    changed = [(one, two) for one, two in zip(default, other, strict=True) if one != two]
    assert [(one.kind, one.precision, two.kind, two.precision) for one, two in changed] == [
        ("patch_embed", "int8", "patch_embed", "float")
    ]
