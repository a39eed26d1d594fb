"""gpusq-build on ONNX files: the same stages, the same layers, and nearly the same loss as from the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_files
import pytest
import torch
from commands import run_main

import gpusq_deploy
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.calibrate import main as calibrate
from gpusq_deploy.cli.compress import main as compress
from gpusq_deploy.cli.eval import main as evaluate
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint

pytestmark = pytest.mark.slow

Array = npt.NDArray[Any]
ARCH = ("--arch", "timm:vit_tiny_patch16_224", *("--arch-arg", "img_size=32"))


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "calib.npz"
    np.savez(path, images=np.random.default_rng(0).standard_normal((40, 3, 32, 32), dtype=np.float32))
    return path


@pytest.fixture(scope="module")
def from_checkpoint(sparse: Path, arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What the files below are held against: torch's own weights by our own exporter."""
    out = tmp_path_factory.mktemp("bundles") / "torch.gpusq"
    return gpusq_deploy.build(sparse, data=arrays, out=out, sparse=True, precision="int8", targets=())


@pytest.fixture(scope="module")
def files(sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights by both of torch's exporters."""
    folder, sample = tmp_path_factory.mktemp("onnx"), torch.zeros(2, 3, 32, 32)
    module = load_checkpoint(sparse).module
    return {
        "torchscript": onnx_files.write_by_torchscript(folder / "old.onnx", module, sample),
        "dynamo": onnx_files.write_by_dynamo(folder / "new.onnx", module, sample),
    }


def decibels(reference: Array, got: Array) -> float:
    noise = np.sum((reference.astype(np.float64) - got.astype(np.float64)) ** 2)
    return float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / noise))


def layers(bundle: Bundle) -> list[tuple[str, str, bool]]:
    return [(layer.layer, layer.precision, layer.sparse) for layer in bundle.plan.layers]


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_a_file_of_torch_s_exporters_becomes_what_the_checkpoint_becomes(
    exporter: str, files: dict[str, Path], from_checkpoint: Bundle, arrays: Path, tmp_path: Path
) -> None:
    bundle = gpusq_deploy.build(
        files[exporter], data=arrays, out=tmp_path / "b.gpusq", sparse=True, precision="int8", targets=()
    )
    assert layers(bundle) == layers(from_checkpoint)
    assert [layer.precision for layer in bundle.plan.layers].count("int8") == 10
    found, expected = bundle.receipt.verification, from_checkpoint.receipt.verification
    assert found is not None
    assert expected is not None
    assert found.sqnr_db == pytest.approx(expected.sqnr_db, abs=1)
    assert bundle.manifest.source.format == "ONNX"
    assert str(bundle.manifest.source.arch).startswith(f"ONNX file {files[exporter].name} (pytorch ")

    # The file as it was given, and what was built, on ONNX Runtime, by nothing of ours.
    batch = np.load(arrays)["images"][:8]
    (reference,) = onnx_files.run_file(files[exporter], batch)
    (got,) = onnx_files.run_file(bundle.path / "model.onnx", batch)
    assert decibels(reference, got) == pytest.approx(found.sqnr_db, abs=3)


@pytest.mark.parametrize("half", [False, True])
def test_a_file_of_another_framework_is_built_and_its_layers_are_named_by_nodes(tmp_path: Path, half: bool) -> None:
    path = onnx_files.write_by_hand(tmp_path / "model.onnx", half=half)
    batch = np.random.default_rng(1).standard_normal((24, 6, 32), dtype=np.float32)
    np.save(tmp_path / "calib.npy", batch)
    done = run_main(
        build, path, "--int8", "--calib", tmp_path / "calib.npy", "--target", "none", "--out", tmp_path / "b", "--json"
    )
    assert (done.code, done.json()["layers"], done.json()["int8_layers"]) == (0, 6, 6)
    (reference,) = onnx_files.run_file(path, batch.astype(np.float16 if half else np.float32))
    (got,) = onnx_files.run_file(tmp_path / "b" / "model.onnx", batch)
    assert decibels(reference, got) > 20
    assert ("its FLOAT16 weights are computed with in float32" in done.err) == half


def test_dense_weights_and_what_needs_a_module_are_refused(dense: Path, arrays: Path, tmp_path: Path) -> None:
    file = onnx_files.write_by_torchscript(
        tmp_path / "dense.onnx", load_checkpoint(dense).module, torch.zeros(1, 3, 32, 32), free=False
    )
    out = ("--out", tmp_path / "b", "--target", "none")
    done = run_main(build, file, "--int8", "--sparse", "--calib", arrays, *out)
    assert (done.code, "8 of 8 layers that should be 2:4 are not" in done.err) == (5, True)
    assert "make it 2:4 with: gpusq-compress CHECKPOINT, and export what it writes to ONNX" in done.err
    assert "--prune second-order" not in done.err
    done = run_main(build, file, "--int8", "--sparse", "--prune", "magnitude", "--calib", arrays, *out)
    assert (done.code, "--prune takes a checkpoint" in done.err) == (2, True)
    done = run_main(build, file, "--int8", "--calib", arrays, "--batch", "1:4:8", *out)
    assert (done.code, "the file takes batch 1 alone" in done.err) == (5, True)
    done = run_main(compress, file, "--data", tmp_path, "--out", tmp_path / "c.pt")
    assert (done.code, "an ONNX file is a graph, not a checkpoint" in done.err) == (5, True)
    assert not (tmp_path / "b").exists()


def test_images_need_to_be_told_how_they_become_the_input(
    files: dict[str, Path], photos: Path, arrays: Path, tmp_path: Path
) -> None:
    file, out = files["torchscript"], tmp_path / "b"
    done = run_main(build, file, "--int8", "--calib", photos, "--target", "none", "--out", out)
    assert (done.code, "nothing says how these images become the model's input" in done.err) == (5, True)
    done = run_main(build, file, *ARCH, "--int8", "--calib", photos, "--target", "none", "--out", out, "--json")
    assert done.code == 0, done.err
    manifest = gpusq_deploy.open_bundle(out).bundle.manifest
    assert (manifest.preprocessing.mean, manifest.preprocessing.origin) == ((0.5,) * 3, "timm pretrained_cfg")
    undeclared = gpusq_deploy.build(file, data=arrays, out=tmp_path / "u.gpusq", precision="int8", targets=())
    assert not undeclared.manifest.preprocessing.is_declared
    done = run_main(evaluate, undeclared.path, "--data", photos)
    assert (done.code, "nothing says how an image becomes the model's input" in done.err) == (5, True)


def test_what_is_calibrated_before_a_build_is_what_the_build_finds(
    files: dict[str, Path], arrays: Path, tmp_path: Path
) -> None:
    file = files["torchscript"]
    done = run_main(calibrate, file, "--calib", arrays, "--state-dict", "x", "--out", tmp_path / "ranges.json")
    assert (done.code, "an ONNX file holds one model" in done.err) == (5, True)
    done = run_main(calibrate, file, "--calib", arrays, "--out", tmp_path / "ranges.json")
    assert done.code == 0, done.err
    ranged = gpusq_deploy.build(
        file, ranges=tmp_path / "ranges.json", out=tmp_path / "r.gpusq", precision="int8", targets=()
    )
    plain = gpusq_deploy.build(file, data=arrays, out=tmp_path / "p.gpusq", precision="int8", targets=())
    assert [layer.layer for layer in ranged.plan.layers] == [layer.layer for layer in plain.plan.layers]
    done = run_main(build, file, "--int8", "--calib", arrays, "--target", "none", "--out", tmp_path / "n", "--dry-run")
    assert (done.code, "10 weighted: 10 int8" in done.out) == (0, True)
    assert not (tmp_path / "n").exists()
