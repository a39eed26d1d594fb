"""Recipes that put attentions into INT8: what the bundle holds, what the engine makes of it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import tiny_models
from commands import run_main

from gpusq_deploy.artifacts.recipe import RESIDUAL_SQNR_DB
from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.inspect import main as inspect
from gpusq_deploy.cli.validate import main as validate

pytestmark = pytest.mark.slow

RECIPE = """
schema = "gpusq.recipe/1"
name = "attentions"
description = "a test"

[[rule]]
kind = "linear"
reason = "every Linear"

[attention]
placement = "full"
reason = "to see"
"""


# TensorRT-RTX 1.7.1 fails on INT8 attention with one head; these have four of 16.
ARCH = ("--arch", f"timm:{tiny_models.NAME}")
SIZES = {**tiny_models.ARGUMENTS, "depth": 2, "num_heads": 4}


def test_full_attention_is_refused_without_consent_and_fused_in_int8_with_it(photos: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "m.gpusq"
    recipe.write_text(RECIPE)
    model = tiny_models.write_vit(tmp_path / "m.pt", depth=2, num_heads=4)
    arch = (*ARCH, *(text for name, value in SIZES.items() for text in ("--arch-arg", f"{name}={value}")))
    options = (*arch, "--int8", "--recipe", recipe, "--calib", photos, "--out", out)
    refused = run_main(build, model, *options)
    assert refused.code == 5
    assert "13.6 dB" in refused.err
    assert "accept_loss" in refused.err

    recipe.write_text(f"{RECIPE}accept_loss = true\n")
    done = run_main(build, model, *options)
    assert done.code == 0, done.err
    bundle = read_bundle(out)
    roles = [(placed.module, placed.role) for placed in bundle.plan.placed]
    assert roles == [
        (f"blocks.{block}.attn", role) for block in range(2) for role in ("query", "key", "softmax", "value")
    ]
    assert not any("won't fuse" in note for note in bundle.plan.notes)
    shown = run_main(inspect, out, "--layer", "blocks.1.attn")
    assert [role in shown.out for role in ("attn, query: INT8", "attn, softmax: INT8")] == [True, True]
    assert "blocks.0.attn, query" not in shown.out
    (engine,) = bundle.receipt.engines
    assert engine.totals.attention_fused == 2
    graph = ir.load(out / "model.onnx").graph
    softmax = [node for node in graph if node.op_type == "Softmax"]
    assert [reader.op_type for node in softmax for reader, _ in node.outputs[0].uses()] == ["QuantizeLinear"] * 2


def test_ranges_of_layers_alone_are_not_enough(sparse: Path, bundle: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace('"full"', '"linear+qk"'))
    options = ("--int8", "--recipe", recipe, "--ranges", bundle / "calibration.json", "--out", tmp_path / "m.gpusq")
    done = run_main(build, sparse, *options)
    assert done.code == 5
    assert "needs ranges" in done.err
    assert "--calib" in done.err


RESIDUAL = RECIPE.partition("[attention]")[0] + '[residual]\nreason = "to see"\n'


def test_a_residual_stream_is_refused_without_consent_and_reported_with_it(photos: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "m.gpusq"
    recipe.write_text(RESIDUAL)
    model = tiny_models.write_vit(tmp_path / "m.pt")
    arch = (
        *ARCH,
        *(text for name, value in tiny_models.ARGUMENTS.items() for text in ("--arch-arg", f"{name}={value}")),
    )
    options = (*arch, "--int8", "--recipe", recipe, "--calib", photos, "--out", out)
    refused = run_main(build, model, *options)
    assert refused.code == 5
    assert f"{RESIDUAL_SQNR_DB['skip']:g} dB" in refused.err

    recipe.write_text(f'{RESIDUAL}inputs = "both"\naccept_loss = true\n')
    done = run_main(build, model, *options)
    assert done.code == 0, done.err
    placed = read_bundle(out).plan.placed
    assert [site.role for site in placed] == ["residual", "branch"] * 2
    adds = [node for node in ir.load(out / "model.onnx").graph if node.name in {site.node for site in placed}]
    producers = [value.producer() for node in adds for value in node.inputs if value is not None]
    assert [None if node is None else node.op_type for node in producers] == ["DequantizeLinear"] * 4
    assert "residual-quantized" in run_main(validate, out).out


def test_smoothing_behind_a_quickgelu_costs_no_kernel(photos: Path, tmp_path: Path) -> None:
    """CLIP's activation, x·sigmoid(1.702 x): the factors' Mul and Sub go into the kernel that computes it."""
    model = tiny_models.write_vit(tmp_path / "m.pt", depth=2, num_heads=4)
    values = {**SIZES, "act_layer": "quick_gelu"}
    arch = (*ARCH, *(text for name, value in values.items() for text in ("--arch-arg", f"{name}={value}")))
    kernels: list[int] = []
    for smooth in ("true", "false"):
        recipe, out = tmp_path / "recipe.toml", tmp_path / f"{smooth}.gpusq"
        recipe.write_text(f"{RECIPE.partition('[attention]')[0]}smooth = {smooth}\n")
        done = run_main(build, model, *arch, "--int8", "--recipe", recipe, "--calib", photos, "--out", out)
        assert done.code == 0, done.err
        operators = [node.op_type for node in ir.load(out / "model.onnx").graph]
        assert operators.count("Sigmoid") == 2
        assert ("smoothed behind its gelu" in (out / "calibration.json").read_text()) == (smooth == "true")
        kernels.append(read_bundle(out).receipt.engines[0].totals.kernels)
    assert kernels[0] == kernels[1]
