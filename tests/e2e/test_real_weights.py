"""A real pretrained DINOv2 ViT-S/14 through the real command, on real photographs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import dinov2
import numpy as np
import numpy.typing as npt
import onnx_files
import pytest
import torch
from commands import run_main
from photographs import CALIBRATION, UNSEEN, write_photographs

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.calibration.data import Batches, open_source
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.validate import main as validate
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.numerics.error import sqnr_db

pytestmark = [pytest.mark.slow, pytest.mark.real_weights]

LINEARS = 48
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "dino.pt"
    torch.save(dinov2.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> torch.nn.Module:
    timm: Any = importlib.import_module("timm")
    module: torch.nn.Module = timm.create_model(dinov2.TIMM_NAME, img_size=224, num_classes=0, global_pool="")
    module.load_state_dict(torch.load(checkpoint, weights_only=True))
    return module.eval()


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2-bundle")
    photos = write_photographs(folder / "photos", CALIBRATION)
    out = folder / "dino.gpusq"
    done = run_main(build, checkpoint, *dinov2.BUILD_ARGUMENTS, "--int8", "--calib", photos, "--out", out)
    assert done.code == 0, done.err
    return out


def photographs(folder: Path, preprocessing: Preprocessing) -> npt.NDArray[np.float32]:
    write_photographs(folder, UNSEEN, crops=3)
    return np.concatenate(list(Batches(source=open_source(str(folder), preprocessing), size=4)))


def answers(model: torch.nn.Module, batch: npt.NDArray[np.float32]) -> Array:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(batch)), dtype=np.float32)


def features_kept(bundle: Path, model: torch.nn.Module, folder: Path) -> float:
    """SQNR of all output tokens against torch, in dB, on photographs that calibration hasn't seen."""
    batch = photographs(folder / "unseen", read_bundle(bundle).manifest.preprocessing)
    session = open_onnx(bundle / "model.onnx")
    got = np.concatenate([session.run({"input": batch[at : at + 4]})["output"] for at in range(0, len(batch), 4)])
    session.close()
    return sqnr_db(answers(model, batch), got)


def test_the_drift_map_points_at_no_layer_whose_values_were_only_scaled(bundle: Path) -> None:
    """What attn.qkv writes is smoothed; unsmoothed it is 41.9 dB in the first block, and attn.proj behind it less."""
    verification = read_bundle(bundle).receipt.verification
    assert verification is not None
    behind = {layer.module: layer.sqnr_db for layer in verification.layers}
    first = [name for name in behind if name.endswith("attn.qkv")]
    assert len(first) == 2
    assert [name for name in first if behind[name] < behind[name.replace("qkv", "proj")]] == []


def test_the_weights_reproduce_the_original_onnx_features(model: torch.nn.Module) -> None:
    batch = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    reference = dinov2.onnx_features(batch)
    assert np.max(np.abs(answers(model, batch) - reference)) < 5e-5
    assert np.max(np.abs(reference)) > 1


def test_every_linear_layer_runs_in_int8_and_attention_stays_fused(bundle: Path) -> None:
    (engine,) = read_bundle(bundle).receipt.engines
    linears = [layer for layer in engine.layers if layer.layer != "patch_embed.proj"]
    assert len(linears) == LINEARS
    assert {layer.precision for layer in linears} == {"int8"}
    assert engine.totals.attention_fused == 12
    assert "fp32" not in engine.totals.gemms


def test_the_graph_is_in_the_form_that_fuses_best(bundle: Path) -> None:
    (engine,) = read_bundle(bundle).receipt.engines
    # As torch exports it: 149. One of the 126 works out shapes, because the batch is dynamic.
    assert engine.totals.kernels <= 126


def test_unseen_photographs_keep_their_features(bundle: Path, model: torch.nn.Module, tmp_path: Path) -> None:
    assert features_kept(bundle, model, tmp_path) >= 27


def test_the_fused_recipe_has_no_kernel_more_than_113_and_keeps_28_db(
    checkpoint: Path, model: torch.nn.Module, tmp_path: Path
) -> None:
    """Measured: 113 kernels, of which one works out shapes; 112 at a fixed batch of 8."""
    photos, out = write_photographs(tmp_path / "photos", CALIBRATION), tmp_path / "fused.gpusq"
    options = ("--int8", "--recipe", "fused_wi8_ai8", "--calib", photos, "--out", out)
    done = run_main(build, checkpoint, *dinov2.BUILD_ARGUMENTS, *options)
    assert done.code == 0, done.err
    found = read_bundle(out)
    (engine,) = found.receipt.engines
    assert engine.totals.kernels <= 113
    assert found.receipt.cost is not None
    assert found.receipt.cost.built is not None
    assert (found.receipt.cost.built.batch, found.receipt.cost.built.kernels <= 113) == (8, True)
    assert engine.totals.attention_fused == 12
    linear = [layer for layer in found.plan.layers if layer.kind == "linear"]
    int8 = sum(layer.macs for layer in linear if layer.precision == "int8")
    assert int8 >= 0.9 * sum(layer.macs for layer in linear)
    assert features_kept(out, model, tmp_path) >= 28


def test_the_bundle_is_sound(bundle: Path) -> None:
    assert run_main(validate, bundle).code == 0


def test_an_fp16_remainder_keeps_50_db_on_unseen_photographs(
    checkpoint: Path, model: torch.nn.Module, tmp_path: Path
) -> None:
    """Measured: 58.6 dB. No tensor comes near what FP16 can't hold, and the export is far within 1e-4 of torch."""
    photos = write_photographs(tmp_path / "photos", CALIBRATION)
    out = tmp_path / "half.gpusq"
    done = run_main(build, checkpoint, *dinov2.BUILD_ARGUMENTS, "--fp16", "--calib", photos, "--out", out)
    assert done.code == 0, done.err
    found = read_bundle(out)
    assert found.plan.wide == ()
    assert "graph rewrite attention-scale (12 places) applied" in found.plan.notes
    assert features_kept(out, model, tmp_path) >= 50
    difference = float(found.manifest.notes[0].split("torch to ")[1].split()[0])
    assert difference <= 1e-5


def test_the_onnx_file_that_the_weights_come_from_is_an_input_too(tmp_path: Path) -> None:
    """Opset 14, LayerNormalization and GELU in parts, and a decoder that no library of models has."""
    photos, out = write_photographs(tmp_path / "photos", CALIBRATION, crops=2), tmp_path / "focus.gpusq"
    arch = ("--arch", f"timm:{dinov2.TIMM_NAME}", "--arch-arg", "img_size=224")
    done = run_main(
        build, dinov2.onnx_file(), *arch, "--int8", "--calib", photos, "--target", "none", "--out", out, "--json"
    )
    assert (done.code, done.json()["layers"], done.json()["int8_layers"]) == (0, 50, 49), done.err
    names = [layer.layer for layer in read_bundle(out).plan.layers]
    assert names[-2] == "backbone.encoder.layer.11.mlp.fc2"
    batch = photographs(tmp_path / "unseen", read_bundle(out).manifest.preprocessing)
    (reference,) = onnx_files.run_file(dinov2.onnx_file(), batch)
    (got,) = onnx_files.run_file(out / "model.onnx", batch)
    assert sqnr_db(reference, got) > 30
