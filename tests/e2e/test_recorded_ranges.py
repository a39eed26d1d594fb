"""Ranges and masks that come with a checkpoint, through gpusq-build."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Finished, run_main

from gpusq_deploy.cli.build import main as build
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, module_from_arch

pytestmark = pytest.mark.slow

# The architecture of the `dense` fixture, whose weights are saved here without their description.
ARCH = "timm:vit_tiny_patch16_224"
ARGUMENTS = ("img_size=32", "patch_size=8", "embed_dim=64", "depth=2", "num_heads=1", "num_classes=64")
LAYERS = [
    *(f"blocks.{i}.{name}" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "patch_embed.proj",
    "head",
]
OPTIONS = ["--arch", ARCH, *(word for argument in ARGUMENTS for word in ("--arch-arg", argument)), "--fp16"]


def with_entries(dense: Path, path: Path, entries: dict[str, torch.Tensor]) -> Path:
    torch.save({**torch.load(dense, weights_only=True)["state_dict"], **entries}, path)
    return path


def built(model: Path, out: Path, *options: object) -> tuple[Finished, dict[str, Any]]:
    done = run_main(build, model, *OPTIONS, "--target", "orin", "--out", out, *options)
    assert done.code == 0, done.err
    return done, {entry["layer"]: entry for entry in json.loads((out / "calibration.json").read_text())["ranges"]}


def modelopt(layers: list[str]) -> dict[str, torch.Tensor]:
    return {f"{layer}.input_quantizer._amax": torch.tensor(3.0 + i) for i, layer in enumerate(layers)}


def test_recorded_ranges_are_used_and_beat_calibration(dense: Path, photos: Path, tmp_path: Path) -> None:
    model = with_entries(dense, tmp_path / "q.pt", modelopt(LAYERS))
    _, ranges = built(model, tmp_path / "out", "--int8", "--calib", photos)
    assert {layer: entry["amax"] for layer, entry in ranges.items()} == {n: 3.0 + i for i, n in enumerate(LAYERS)}
    assert all(entry["origin"] == "recorded in q.pt: ModelOpt, input_quantizer._amax" for entry in ranges.values())


def test_calibration_fills_in_and_takes_over_where_it_is_told(dense: Path, photos: Path, tmp_path: Path) -> None:
    model = with_entries(dense, tmp_path / "q.pt", modelopt(LAYERS[:-1]))
    _, ranges = built(model, tmp_path / "some", "--int8", "--calib", photos, "--recipe", "static_wi8_ai8")
    assert ["recorded" in ranges[layer]["origin"] for layer in LAYERS] == [True] * 9 + [False]
    manifest = json.loads((tmp_path / "some" / "manifest.json").read_text())
    assert (manifest["options"]["calib"], manifest["options"]["recorded_ranges"]) == (str(photos), True)
    assert {"timm", "torchvision", "transformers"} <= manifest["versions"].keys()
    done, ranges = built(model, tmp_path / "none", "--int8", "--calib", photos, "--recalibrate")
    assert not [entry for entry in ranges.values() if "recorded" in entry["origin"]]
    assert "9 ranges that the checkpoint records are not used" in done.err
    assert json.loads((tmp_path / "none" / "manifest.json").read_text())["options"]["recalibrate"] is True


def test_a_layer_that_its_producer_left_float_stays_float(dense: Path, photos: Path, tmp_path: Path) -> None:
    model = with_entries(dense, tmp_path / "q.pt", modelopt([*LAYERS[:-1], "blocks.9.mlp.fc1"]))
    done, ranges = built(model, tmp_path / "out", "--int8", "--calib", photos)
    assert set(ranges) == {*LAYERS[:-1]}
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    (head,) = [entry for entry in plan["layers"] if entry["layer"] == "head"]
    assert head["precision"] == "fp16"
    assert "ModelOpt left it in floating point" in head["precision_reason"]
    assert "1 module without weights to multiply by: blocks.9.mlp.fc1" in done.err


def test_ranges_that_are_missing_for_what_a_recipe_wants_exit_5(dense: Path, tmp_path: Path) -> None:
    model = with_entries(dense, tmp_path / "q.pt", modelopt(LAYERS[:-1]))
    recipe = ("--recipe", "static_wi8_ai8")
    done = run_main(build, model, *OPTIONS, *recipe, "--int8", "--target", "orin", "--out", tmp_path / "out")
    assert done.code == 5
    assert "missing for head" in done.err
    assert not (tmp_path / "out").exists()


def test_a_range_that_cannot_be_exits_5_where_its_layer_is_quantised(dense: Path, tmp_path: Path) -> None:
    entries = modelopt(LAYERS) | {"head.input_quantizer._amax": torch.tensor(float("nan"))}
    model = with_entries(dense, tmp_path / "q.pt", entries)
    done = run_main(build, model, *OPTIONS, "--int8", "--target", "orin", "--out", tmp_path / "out")
    assert done.code == 5
    assert "head.input_quantizer._amax" in done.err


def test_a_calibration_cache_gives_the_ranges(dense: Path, tmp_path: Path) -> None:
    names = {"images": 0.02, "/Gather_output_0": 0.07}
    for i in range(2):
        names |= {
            f"/blocks/blocks.{i}/{tail}_output_0": 0.03 + i
            for tail in ("norm1/LayerNormalization", "attn/Reshape_1", "norm2/LayerNormalization", "mlp/act/Mul_1")
        }
    lines = [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in names.items()]
    (tmp_path / "old.cache").write_text("\n".join(["TRT-8601-EntropyCalibration2", *lines]))
    model = with_entries(dense, tmp_path / "plain.pt", {})
    _, ranges = built(model, tmp_path / "out", "--int8", "--ranges", tmp_path / "old.cache")
    assert ranges["blocks.1.mlp.fc2"]["amax"] == pytest.approx(127 * 1.03)
    assert "/blocks/blocks.1/mlp/act/Mul_1_output_0" in ranges["blocks.1.mlp.fc2"]["origin"]


def test_a_module_needs_allow_pickle_which_is_loud_and_recorded(tmp_path: Path) -> None:
    path = tmp_path / "module.pt"
    torch.save(module_from_arch(arch_from_text(ARCH, ARGUMENTS)), path)
    refused = run_main(build, path, *OPTIONS, "--target", "orin", "--out", tmp_path / "out")
    assert refused.code == 5
    assert "would run code" in refused.err
    done = run_main(build, path, *OPTIONS, "--target", "orin", "--out", tmp_path / "out", "--allow-pickle")
    assert done.code == 0, done.err
    assert "WARNING: --allow-pickle" in done.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"]["allow_pickle"] is True
    assert [note for note in manifest["notes"] if "code that the file names was run" in note]
