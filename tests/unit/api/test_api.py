"""The API on a tiny ViT, beside the rooms that it stands before and beside ONNX Runtime by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_models
import torch
from exact_sessions import exact_session
from PIL import Image

import gpusq_deploy
from gpusq_deploy.artifacts import CalibrationTable, Manifest, Runs, json_from_value, read_value
from gpusq_deploy.progress import Reporter

pytestmark = pytest.mark.slow
ARCH_ARGS = tiny_models.ARGUMENTS
ARCH = f"timm:{tiny_models.NAME}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.pt` and two classes of six images."""
    where = tmp_path_factory.mktemp("api")
    tiny_models.write_vit(where / "model.pt")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (where / "photos" / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.clip(rng.normal(level, 30, (40, 48, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(where / "photos" / name / f"{index}.png")
    return where


@pytest.fixture(scope="module")
def bundle(folder: Path) -> gpusq_deploy.OpenBundle:
    """In INT8, for batches of 2 to 4, without an engine."""
    made = gpusq_deploy.build(
        folder / "model.pt",
        out=folder / "model.gpusq",
        data=folder / "photos",
        precision="int8",
        targets=(),
        arch=ARCH,
        arch_args=ARCH_ARGS,
        batch="2:2:4",
    )
    assert made.path == folder / "model.gpusq"
    return gpusq_deploy.open_bundle(made.path)


def by_hand(files: list[Path]) -> npt.NDArray[np.float32]:
    """timm's preprocessing of this model, without any of our code: 32 / 0.9 on the shorter side, then the centre."""
    samples: list[npt.NDArray[np.float32]] = []
    for file in files:
        image = Image.open(file)
        height = int(32 / 0.9)
        resized = image.resize((48 * height // 40, height), Image.Resampling.BICUBIC)
        left, top = round((resized.width - 32) / 2), round((resized.height - 32) / 2)
        pixels = np.asarray(resized.crop((left, top, left + 32, top + 32)), dtype=np.float32) / 255
        samples.append(np.asarray(np.moveaxis((pixels - 0.5) / 0.5, 2, 0), dtype=np.float32))
    return np.stack(samples)


def of_onnxruntime(bundle: Path, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = exact_session(bundle / "model.onnx")
    (taken,) = session.get_inputs()
    return np.asarray(session.run(None, {taken.name: samples})[0])


def test_a_checkpoint_is_loaded_by_text_and_arguments(folder: Path) -> None:
    found = gpusq_deploy.load_checkpoint(folder / "model.pt", arch=ARCH, arch_args=ARCH_ARGS)
    words = [f"{key}={value!r}" for key, value in ARCH_ARGS.items()]
    assert found.arch == gpusq_deploy.load_checkpoint(folder / "model.pt", arch=ARCH, arch_args=words).arch
    assert found.arch == tiny_models.vit_spec()
    stored = torch.load(folder / "model.pt", weights_only=True)
    assert torch.equal(found.module.state_dict()["head.weight"], stored["head.weight"])


def test_what_is_saved_describes_itself(folder: Path, tmp_path: Path) -> None:
    found = gpusq_deploy.load_checkpoint(folder / "model.pt", arch=ARCH, arch_args=ARCH_ARGS)
    out = tmp_path / "saved.pt"
    gpusq_deploy.save_checkpoint(out, found.module, arch=found.arch, preprocessing=found.preprocessing)
    again = gpusq_deploy.load_checkpoint(out)
    assert (again.arch, again.preprocessing) == (found.arch, found.preprocessing)
    with pytest.raises(gpusq_deploy.GpusqError, match="cannot write the checkpoint"):
        gpusq_deploy.save_checkpoint(tmp_path, found.module, arch=found.arch, preprocessing=found.preprocessing)


def test_an_architecture_as_a_value_takes_further_arguments(folder: Path) -> None:
    spec = gpusq_deploy.ArchSpec(source="timm", name=tiny_models.NAME, arguments={**ARCH_ARGS, "num_classes": 7})
    found = gpusq_deploy.load_checkpoint(folder / "model.pt", arch=spec, arch_args={"num_classes": 64})
    assert found.arch == tiny_models.vit_spec()


def test_a_checkpoint_and_its_bundle_are_checked(folder: Path, bundle: gpusq_deploy.OpenBundle) -> None:
    found = gpusq_deploy.check(folder / "model.pt", arch=ARCH, arch_args=ARCH_ARGS, targets=["a100"])
    assert found.kind == "checkpoint"
    assert {finding.place for finding in found.findings} >= {"blocks.0.attn.qkv", "blocks.0.mlp.fc1"}
    assert [layer.layer for layer in found.explained] == [layer.layer for layer in found.sparsity.layers]
    assert gpusq_deploy.check(bundle.path).findings == ()


def test_a_bundle_says_why(bundle: gpusq_deploy.OpenBundle) -> None:
    assert bundle.manifest == read_value(bundle.path / "manifest.json", Manifest)
    explained = {layer.layer: layer for layer in bundle.explain("a100")}
    assert list(explained) == [layer.layer for layer in bundle.plan.layers]
    qkv = explained["blocks.0.attn.qkv"]
    assert (qkv.asked, qkv.built, qkv.target) == ("int8", None, "a100")
    assert qkv.sparse is not None
    assert qkv.sparse.stop is not None
    with pytest.raises(gpusq_deploy.GpusqError, match="no engine to explain"):
        bundle.explain()


def test_a_bundle_holds_expectations_or_not(bundle: gpusq_deploy.OpenBundle, tmp_path: Path) -> None:
    wanted = tmp_path / "wanted.toml"
    for bound, held in ((">= 1", True), (">= 200", False)):
        wanted.write_text(f'schema = "gpusq.expect/1"\nsqnr_db = "{bound}"\n[engine.a100]\nkernels = ">= 1"\n')
        assert [(check.what, check.held) for check in bundle.check(wanted)] == [("sqnr_db", held), ("engine", False)]


def test_random_data_is_warned_of(folder: Path, tmp_path: Path, bundle: gpusq_deploy.OpenBundle) -> None:
    assert not any("random" in warning for warning in bundle.warnings())
    heard: list[str] = []
    out = tmp_path / "noise.gpusq"
    gpusq_deploy.build(
        folder / "model.pt",
        out=out,
        data="random",
        precision="int8",
        targets=(),
        arch=ARCH,
        arch_args=ARCH_ARGS,
        reporter=Reporter(say=heard.append, progress=lambda _label, _done, _total: None),
    )
    assert "don't deploy this" in gpusq_deploy.open_bundle(out).warnings()[0]
    assert any(line.startswith("exporting") for line in heard)


def test_images_are_prepared_as_the_model_declares_and_run_in_pieces(
    folder: Path, bundle: gpusq_deploy.OpenBundle
) -> None:
    """Nine images: two batches of four, and one that is filled up to two."""
    files = sorted((folder / "photos").rglob("*.png"))[:9]
    samples = by_hand(files)
    wanted = np.concatenate([of_onnxruntime(bundle.path, samples[:4]), of_onnxruntime(bundle.path, samples[4:8])])
    wanted = np.concatenate([wanted, of_onnxruntime(bundle.path, samples[[8, 8]])[:1]])
    with bundle.session("onnxruntime") as session:
        (name,) = (spec.name for spec in session.outputs)
        for given in (files, [str(file) for file in files], [Image.open(file) for file in files], samples):
            np.testing.assert_allclose(session.run(given)[name], wanted, atol=1e-3)
        np.testing.assert_allclose(session.run(files[0])[name], wanted[:1], atol=0.05)


def test_what_is_no_sample_is_refused(bundle: gpusq_deploy.OpenBundle) -> None:
    with bundle.session() as session:
        with pytest.raises(gpusq_deploy.GpusqError, match=r"the array is float32 \[1, 3, 8, 8\], the model takes"):
            session.run(np.zeros((1, 3, 8, 8), np.float32))
        with pytest.raises(gpusq_deploy.GpusqError, match="the array is uint8"):
            session.run(np.zeros((1, 3, 32, 32), np.uint8))
        with pytest.raises(gpusq_deploy.GpusqError, match="no image to run"):
            session.run([])


def test_ranges_are_found_and_used(folder: Path, tmp_path: Path, bundle: gpusq_deploy.OpenBundle) -> None:
    """Behind a norm a build smooths; the head's range is the one that a build finds itself."""
    out = tmp_path / "ranges.json"
    table = gpusq_deploy.calibrate(
        folder / "model.pt", out=out, data=folder / "photos", arch=ARCH, arch_args=ARCH_ARGS, batch="2:2:4"
    )
    assert read_value(out, CalibrationTable) == table
    assert bundle.calibration is not None
    (found,), (built,) = (
        [entry for entry in some.ranges if entry.layer == "head"] for some in (table, bundle.calibration)
    )
    assert found == built


def test_a_model_is_compressed(folder: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    done = gpusq_deploy.compress(
        folder / "model.pt",
        out=tmp_path / "sparse.pt",
        data=folder / "photos",
        arch=ARCH,
        arch_args=ARCH_ARGS,
        epochs=1,
        reporter=Reporter(say=heard.append, progress=lambda _label, _done, _total: None),
    )
    assert any(line.startswith("epoch 1 of 1: loss ") for line in heard)
    sparse = gpusq_deploy.load_checkpoint(tmp_path / "sparse.pt")
    for layer in done.pruned:
        groups = sparse.module.get_parameter(f"{layer}.weight").reshape(-1, 4)
        assert int((groups != 0).sum(dim=1).max()) <= 2
    assert gpusq_deploy.check(tmp_path / "sparse.pt").findings == ()


def test_near_misses_are_repaired(folder: Path, tmp_path: Path) -> None:
    gpusq_deploy.compress(
        folder / "model.pt",
        out=tmp_path / "sparse.pt",
        data=folder / "photos",
        arch=ARCH,
        arch_args=ARCH_ARGS,
        epochs=0,
    )
    content = torch.load(tmp_path / "sparse.pt", weights_only=True)
    weight = content["state_dict"]["blocks.0.mlp.fc1.weight"]
    weight[weight == 0] = 1e-9
    torch.save(content, tmp_path / "near.pt")
    assert {finding.place for finding in gpusq_deploy.check(tmp_path / "near.pt").findings} == {"blocks.0.mlp.fc1"}
    mended = gpusq_deploy.repair(tmp_path / "near.pt", out=tmp_path / "mended.pt")
    assert [layer.layer for layer in mended.near_misses] == ["blocks.0.mlp.fc1"]
    assert gpusq_deploy.check(tmp_path / "mended.pt").findings == ()


def test_latency_is_measured_and_compared(bundle: gpusq_deploy.OpenBundle, tmp_path: Path) -> None:
    runs = gpusq_deploy.bench(bundle.path, runtime="onnxruntime", iterations=10, warmup=1)
    assert runs.batches == (2,)
    assert len(runs.series) == 5
    assert all(len(series.samples_ms) == 10 for series in runs.series)
    (tmp_path / "runs.json").write_bytes(json_from_value(runs))
    assert read_value(tmp_path / "runs.json", Runs) == runs
    verdict = gpusq_deploy.compare(tmp_path / "runs.json", runs, max_regression=1000.0)
    assert (verdict.verdict, verdict.batches[0].ratio) == ("holds", 1.0)
    with pytest.raises(gpusq_deploy.GpusqError, match="isn't what gpusq-compare takes") as caught:
        gpusq_deploy.compare(runs, bundle.path)
    assert "gpusq_deploy.bench" in str(caught.value.hint)


def test_bundles_are_compared(bundle: gpusq_deploy.OpenBundle) -> None:
    assert gpusq_deploy.compare_bundles(bundle.path, bundle.path).verdict == "same"


def test_a_preview_writes_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gpusq"
    found = gpusq_deploy.preview(
        folder / "model.pt", out=out, data="random", precision="int8", targets=("a100",), arch=ARCH, arch_args=ARCH_ARGS
    )
    assert {layer.layer: layer.precision for layer in found.layers}["blocks.0.mlp.fc1"] == "int8"
    assert not out.exists()


def test_mistakes_are_told_at_once(folder: Path, bundle: gpusq_deploy.OpenBundle, tmp_path: Path) -> None:
    untyped: Any = gpusq_deploy.build
    with pytest.raises(TypeError, match="a build has no option 'colour'"):
        untyped(folder / "model.pt", out=tmp_path / "b", colour="red")
    with pytest.raises(gpusq_deploy.GpusqError, match="a bundle is built already"):
        gpusq_deploy.build(bundle.path, out=tmp_path / "b")
    with pytest.raises(gpusq_deploy.GpusqError, match="a range is named twice"):
        gpusq_deploy.build(folder / "model.pt", out=tmp_path / "b", batch=[4, "4"])
    with pytest.raises(gpusq_deploy.GpusqError, match="needs --arch"):
        gpusq_deploy.load_checkpoint(folder / "model.pt", arch_args={"img_size": 32})
    assert not list(tmp_path.iterdir())


def test_nothing_is_printed(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    gpusq_deploy.calibrate(
        folder / "model.pt", out=tmp_path / "r.json", data=folder / "photos", arch=ARCH, arch_args=ARCH_ARGS
    )
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
