"""INT8 outputs from the command to the engine: the product writes INT8, and the chain says that it may run sparse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run_main

from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.inspect import main as inspect

pytestmark = pytest.mark.slow

RECIPE = """
schema = "gpusq.recipe/1"
name = "outputs"
description = "a test"

[[rule]]
match = "*.fc1"
output = "int8"
reason = "to see"

[[rule]]
match = "head"
sparse = false
reason = "dense"

[[rule]]
kind = "linear"
rounding = "second-order"
reason = "every other Linear"
"""


def test_a_product_writes_int8_and_the_others_say_why_not(sparse: Path, photos: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "m.gpusq"
    recipe.write_text(RECIPE)
    options = ("--int8", "--sparse", "--recipe", recipe, "--calib", photos, "--sparse-outputs", "int8:10")
    done = run_main(build, sparse, *options, "--out", out)
    assert done.code == 0, done.err
    bundle = read_bundle(out)
    said = {layer.layer: layer.output_reason for layer in bundle.plan.layers}
    assert "recipe outputs: output = int8" in str(said["blocks.0.mlp.fc1"])
    assert "below 256 channels" in str(said["blocks.0.mlp.fc2"])
    (engine,) = bundle.receipt.engines
    writes = {
        layer.layer: {
            tensor.dtype
            for kernel in engine.engine_layers
            if kernel.name in layer.engine_layers
            for tensor in kernel.outputs
        }
        for layer in engine.layers
    }
    assert writes["blocks.0.mlp.fc1"] == {"Int8"}
    assert writes["blocks.0.mlp.fc2"] == {"Half"}
    chains = {
        name: {
            step["question"]: step["answer"]
            for step in json.loads(run_main(inspect, out, "--layer", name, "--json").out)["receipt"]["engines"][0][
                "explained"
            ][0]["chain"]
        }
        for name in ("blocks.0.mlp.fc1", "blocks.0.mlp.fc2")
    }
    assert [chains[name]["eligible"] for name in chains] == ["yes", "unknown"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--int8", "--sparse", "--calib", "random", "--sparse-outputs", "int4"), "int8, or int8:DB"),
        (("--int8", "--sparse", "--calib", "random", "--sparse-outputs", "int8:much"), "int8, or int8:DB"),
        (("--int8", "--calib", "random", "--sparse-outputs", "int8"), "needs --int8, --sparse and --calib"),
        (("--int8", "--sparse", "--sparse-outputs", "int8"), "needs --int8, --sparse and --calib"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(sparse: Path, options: tuple[str, ...], said: str) -> None:
    done = run_main(build, sparse, *options)
    assert done.code == 2
    assert said in " ".join(done.err.split())
