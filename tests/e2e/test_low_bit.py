"""FP8 and INT4 from a checkpoint to an engine: what is asked, stored, built, and refused."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import tiny_models
from commands import run_main

from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.inspect import main as inspect
from gpusq_deploy.cli.validate import main as validate

pytestmark = pytest.mark.slow

ARCH = (
    "--arch",
    f"timm:{tiny_models.NAME}",
    *(text for name, value in tiny_models.ARGUMENTS.items() for text in ("--arch-arg", f"{name}={value}")),
)


def test_fp8_goes_to_a_gpu_that_has_it_and_to_no_other(photos: Path, tmp_path: Path) -> None:
    model, out = tiny_models.write_vit(tmp_path / "m.pt"), tmp_path / "m.gpusq"
    options = (model, *ARCH, "--fp8", "--calib", photos, "--out", out)
    refused = run_main(build, *options)
    assert refused.code == 5
    assert "a100: it has no fp8 tensor cores" in refused.err
    assert "rtx50" in refused.err
    assert "loading" not in refused.err

    done = run_main(build, *options, "--target", "rtx40", "--json")
    assert done.code == 0, done.err
    result = done.json()
    assert result["fp8_layers"] == result["layers"] - 1 == 5
    assert result["verification"]["sqnr_db"] > 20
    (engine,) = read_bundle(out).receipt.engines
    assert engine.totals.gemms["fp8"] == 5
    assert {layer.precision for layer in engine.layers if layer.asked == "fp8"} == {"fp8"}
    assert "FP8, of 6 layers: asked 5" in run_main(inspect, out).out
    assert run_main(validate, out).code == 0


@pytest.mark.parametrize("calib", [True, False])
def test_int4_weights_need_no_data_and_are_rounded_by_it_where_there_is_some(
    photos: Path, tmp_path: Path, calib: bool
) -> None:
    model, out = tiny_models.write_vit(tmp_path / "m.pt"), tmp_path / "m.gpusq"
    data = ("--calib", photos) if calib else ()
    done = run_main(build, model, *ARCH, "--int4", *data, "--out", out)
    assert done.code == 0, done.err
    assert ("rounded to nearest" in done.err) is not calib
    bundle = read_bundle(out)
    assert [layer.precision for layer in bundle.plan.layers] == ["fp16", *["int4"] * 4, "fp16"]
    (engine,) = bundle.receipt.engines
    assert engine.totals.gemms["int4"] == 4
    graph = ir.load(out / "model.onnx")
    assert graph.graph.opset_imports[""] == 21
    types = [value.dtype for value in graph.graph.initializers.values()]
    assert types.count(ir.DataType.INT4) == 4
    assert "INT4, of 6 layers: asked 4" in run_main(inspect, out).out
    assert run_main(validate, out).code == 0


RECIPE = """
schema = "gpusq.recipe/1"
name = "all"
description = "a test"

[mixed]
flops = 0.3

[residual]
accept_loss = true
reason = "to see"

[[rule]]
match = "*.qkv"
precision = "fp8"
reason = "FP8"

[[rule]]
match = "*.fc2"
precision = "int4"
block = 64
sparse = false
rounding = "second-order"
reason = "INT4"

[[rule]]
match = "*.fc1"
output = "int8"
rounding = "second-order"
reason = "INT8 with an INT8 product"

[[rule]]
match = "head"
sparse = false
reason = "dense"

[[rule]]
kind = "linear"
smooth = true
rounding = "second-order"
reason = "INT8"
"""


def test_one_recipe_has_every_precision_outputs_residuals_and_layers_left_float(
    sparse: Path, photos: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "m.gpusq"
    recipe.write_text(RECIPE)
    options = ("--int8", "--sparse", "--recipe", recipe, "--calib", photos, "--target", "rtx40")
    done = run_main(build, sparse, *options, "--out", out)
    assert done.code == 0, done.err
    bundle = read_bundle(out)
    planned = {layer.layer: layer for layer in bundle.plan.layers}
    assert planned["blocks.0.attn.qkv"].precision == "fp8"
    assert planned["blocks.0.mlp.fc2"].precision == "int4"
    linear = [layer for layer in planned.values() if layer.kind == "linear"]
    floats = [layer for layer in linear if layer.precision == "fp16"]
    assert floats
    assert all("mixed" in layer.precision_reason for layer in floats)
    assert sum(layer.macs for layer in floats) <= 0.3 * sum(layer.macs for layer in linear)
    single = [layer for layer in linear if layer.weight is not None and layer.weight.one_scale]
    assert {layer.precision for layer in single} == {"int8"}
    assert {placed.role for placed in bundle.plan.placed} - {"output"} == {"residual"}
    (engine,) = bundle.receipt.engines
    assert {layer.layer: layer.precision for layer in engine.layers if layer.precision != layer.asked} == {}
    assert bundle.receipt.cost is not None
    assert bundle.receipt.cost.what == "FP8 and INT4 and INT8"
    estimated = {layer.layer for layer in planned.values() if layer.estimate is not None}
    assert estimated == {layer.layer for layer in linear if layer.precision == "int8"}
    assert run_main(inspect, out).code == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--int8", "--fp8"), 2, "give one of"),
        (("--int4", "--opset", "20"), 5, "from opset 21 on"),
        (("--int4", "--recipe", "plain_wi8_ai8"), 5, "makes no layer INT4"),
        (("--int4", "--ranges", "r.json"), 2, "need --int8 or --fp8"),
        (("--fp8", "--target", "rtx40"), 5, "need activation ranges"),
        (("--fp8", "--target", "rtx40", "--calib", "random", "--calibrator", "entropy"), 5, "weighs the steps of INT8"),
    ],
)
def test_what_doesn_t_fit_together_is_refused(tmp_path: Path, options: tuple[str, ...], code: int, said: str) -> None:
    model, out = tiny_models.write_vit(tmp_path / "m.pt"), tmp_path / "m.gpusq"
    done = run_main(build, model, *ARCH, *options, "--out", out)
    assert done.code == code
    assert said in " ".join(done.err.split())
    assert not out.exists()
