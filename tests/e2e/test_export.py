"""gpusq-export: its programs answer what our session does, in Python and C++; what is there is left alone."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from commands import run_main
from exported import HEADERS, headers, run_python
from PIL import Image

import gpusq_deploy
from gpusq_deploy import GpusqError, Preprocessing, open_bundle
from gpusq_deploy.artifacts.arch import CropMode, CropOffset, Interpolation
from gpusq_deploy.artifacts.base import builtins_from_value, digest_of_file, read_value
from gpusq_deploy.artifacts.export_record import EXPORT, ExportRecord
from gpusq_deploy.artifacts.manifest import Manifest
from gpusq_deploy.calibration.image_data import load_image
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.export import main as export

pytestmark = pytest.mark.slow

WITHOUT_RTX = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)


@pytest.fixture(scope="module")
def exported(built: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sparse bundle's model with its programs."""
    folder = tmp_path_factory.mktemp("export") / "sparse"
    done = run_main(export, built[0], "--to", "onnx", "--out", folder)
    assert done.code == 0, done.err
    return folder


def outputs_of(bundle: Path, photos: list[Path]) -> npt.NDArray[np.float32]:
    with open_bundle(bundle).session("onnxruntime") as session:
        (found,) = session.run([str(photo) for photo in photos]).values()
    return found


def test_the_python_program_answers_what_our_session_does(exported: Path, bundle: Path, photos: Path) -> None:
    images = sorted(photos.iterdir())[:3]
    saved = exported.parent / "out.npz"
    done = run_python(exported, *images, "--save", saved, "--save-input", exported.parent / "input.bin")
    assert done.returncode == 0, done.stderr
    wanted = outputs_of(bundle, images)
    with np.load(saved) as found:
        assert np.array_equal(found["output"], wanted)
    shares = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("output: float32 [3, 64], ")
    for index, image in enumerate(images):
        best = int(shares[index].argmax())
        assert lines[1 + 6 * index : 3 + 6 * index] == [str(image), f"  {best} {shares[index, best]:.1%}"]
    samples = np.fromfile(exported.parent / "input.bin", np.float32).reshape(3, 3, 32, 32)
    declared = open_bundle(bundle).manifest.preprocessing
    assert np.array_equal(samples, np.stack([load_image(image, declared) for image in images]))


def odd_images(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (67, 101, 4)).astype(np.uint8)
    whole = Image.fromarray(colours)
    made = {
        "rgba.png": whole,
        "grey.png": whole.convert("L"),
        "palette.png": whole.convert("RGB").quantize(16),
        "cmyk.tif": whole.convert("CMYK"),
        "wide.jpg": whole.convert("RGB").resize((301, 40)),
        "tall.webp": whole.convert("RGB").resize((35, 207)),
        "exact.bmp": whole.convert("RGB").resize((32, 32)),
        "tiny.gif": whole.convert("RGB").resize((5, 7)),
    }
    for name, image in made.items():
        image.save(folder / name)
    return {name: folder / name for name in made}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    "framed",
    [("center", "round", 40), ("center", "floor", 48), ("squash", "floor", 40), ("border", "round", 48)],
)
def test_images_are_prepared_to_the_same_bits(
    exported: Path,
    tmp_path: Path,
    channels: int,
    interpolation: Interpolation,
    framed: tuple[CropMode, CropOffset, int],
) -> None:
    mode, offset, width = framed
    declared = Preprocessing(
        channels=channels,
        height=48,
        width=width,
        mean=(0.485, 0.456, 0.406)[:channels],
        std=(0.229, 0.224, 0.225)[:channels],
        interpolation=interpolation,
        crop_fraction=0.875,
        crop_mode=mode,
        crop_offset=offset,
        origin="test",
    )
    facts = json.loads((exported / "model.json").read_text())
    facts["preprocessing"] = builtins_from_value(declared)
    (tmp_path / "model.json").write_text(json.dumps(facts))
    shutil.copyfile(exported / "infer.py", tmp_path / "infer.py")
    program = loaded(tmp_path / "infer.py")
    for name, path in odd_images(tmp_path).items():
        assert np.array_equal(program.prepare(str(path)), load_image(path, declared)), name


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("infer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_more_and_fewer_samples_than_the_batch(dense: Path, photos: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "fixed.gpusq"
    built = run_main(build, dense, "--fp32", "--batch", "4", "--target", "none", "--out", bundle)
    assert built.code == 0, built.err
    done = gpusq_deploy.export(bundle, "onnx")
    assert done.folder == tmp_path / "fixed-onnx"
    assert done.record.kind == "onnx"
    images = sorted(photos.iterdir())[:6]
    ran = run_python(tmp_path / "fixed-onnx", *images, "--save", tmp_path / "out.npz")
    assert ran.returncode == 0, ran.stderr
    with np.load(tmp_path / "out.npz") as found:
        assert np.array_equal(found["output"], outputs_of(bundle, images))


def test_weights_beside_the_model_go_with_it(sparse: Path, photos: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "packed.gpusq"
    options = ("--int8", "--sparse", "--calib", photos, "--target", "none", "--pack", "--out", bundle)
    assert run_main(build, sparse, *options).code == 0
    assert gpusq_deploy.export(bundle, "triton").record.kind == "triton"
    assert (tmp_path / "packed-triton" / "packed" / "1" / "weights.dense").is_file()
    gpusq_deploy.export(bundle, "onnx")
    images = sorted(photos.iterdir())[:2]
    assert run_python(tmp_path / "packed-onnx", *images, "--save", tmp_path / "out.npz").returncode == 0
    with np.load(tmp_path / "out.npz") as found:
        assert np.array_equal(found["output"], outputs_of(bundle, images))
    (bundle / "weights.dense").unlink()
    with pytest.raises(GpusqError, match="packed") as caught:
        gpusq_deploy.export(bundle, "docker")
    assert "gpusq-build" in str(caught.value.hint)


def test_bad_inputs_end_in_one_line(exported: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.zeros((1, 3, 8, 8), np.float32))
    deep = tmp_path / "deep.png"
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep)
    for given, words in ((text, "cannot identify image"), (wrong, "the model takes"), (deep, "more than 8 bits")):
        done = run_python(exported, given)
        assert done.returncode == 1
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


@WITHOUT_RTX
@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-bindings aren't installed here")
@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU, and the engine is for another")
def test_an_engine_is_run_up_to_the_device(exported: Path, photos: Path) -> None:
    done = run_python(exported, "--plan", exported / "engines" / "a100.plan", sorted(photos.iterdir())[0])
    assert done.returncode == 1
    assert done.stderr.startswith("cudaSetDevice: cudaError")


@WITHOUT_RTX
def test_polygraphy_builds_the_very_engine(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "commands"
    done = run_main(export, bundle, "--to", "trtexec", "--out", out)
    assert done.code == 0, done.err
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    made = subprocess.run(
        ["sh", str(out / "polygraphy-a100.sh")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert (tmp_path / "a100.plan").read_bytes() == (bundle / "engines" / "a100.plan").read_bytes()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake isn't installed here")
@pytest.mark.skipif(
    not headers("onnxruntime"),
    reason=f"no package has ONNX Runtime's C++ headers: name them in {HEADERS['onnxruntime']}",
)
def test_the_cpp_program_answers_what_our_session_does(
    exported: Path, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    images = sorted(photos.iterdir())[:3]
    assert run_python(exported, *images, "--save-input", tmp_path / "input.bin").returncode == 0
    (library,) = Path(str(onnxruntime.__file__)).parent.glob("capi/libonnxruntime.so.*")
    (tmp_path / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / "lib" / name).symlink_to(library)
    configure = ["cmake", "-S", exported / "cpp", "-B", tmp_path / "build", "-DRUNTIME=onnxruntime"]
    configure += [
        f"-DRUNTIME_INCLUDE={headers('onnxruntime')[0]}",
        f"-DRUNTIME_LIBRARY={tmp_path}/lib/libonnxruntime.so",
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path / "lib")}
    program = [tmp_path / "build" / "infer", exported / "model.onnx", tmp_path / "input.bin", "--out", tmp_path]
    flags = ["-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"]
    for command in ([*configure, *flags], ["cmake", "--build", tmp_path / "build"], program):
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    found = np.fromfile(tmp_path / "output0.bin", np.float32).reshape(3, 64)
    assert np.array_equal(found, outputs_of(bundle, images))


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ isn't installed here")
@pytest.mark.skipif(
    not headers("tensorrt"), reason=f"no package has TensorRT's headers: name them and CUDA's in {HEADERS['tensorrt']}"
)
def test_the_cpp_program_compiles_with_tensorrt(exported: Path) -> None:
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(exported / "cpp" / "main.cpp")]
    command += [word for folder in headers("tensorrt") for word in ("-isystem", folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["triton", "trtexec", "onnx", "docker"])
def test_every_kind_is_whole_and_recorded(bundle: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    done = run_main(export, bundle, "--to", kind, "--out", out, "--name", "vit", "--json")
    assert done.code == 0, done.err
    record = read_value(out / EXPORT, ExportRecord)
    assert done.json()["remarks"] == list(record.remarks)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {EXPORT, *(entry.path for entry in record.files)}
    assert record.model_digest == digest_of_file(bundle / "model.onnx")
    for path in out.rglob("*.sh"):
        assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0
        assert os.access(path, os.X_OK)
    for path in out.rglob("Dockerfile.*"):
        copied = next(line for line in path.read_text().splitlines() if line.startswith("COPY")).split()[1:-1]
        assert all((out / name).is_file() for name in copied)


def test_equal_bundles_give_equal_exports(bundle: Path, tmp_path: Path) -> None:
    records = [gpusq_deploy.export(bundle, "triton", out=tmp_path / name).record for name in ("one", "two")]
    assert records[0] == records[1]


def test_what_is_there_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for force in ([], ["--force"]):
        done = run_main(export, bundle, "--to", "docker", "--out", out, *force)
        assert done.code == 5
        assert "Traceback" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    ours = tmp_path / "ours"
    assert run_main(export, bundle, "--to", "docker", "--out", ours).code == 0
    assert run_main(export, bundle, "--to", "triton", "--out", ours).code == 5
    assert run_main(export, bundle, "--to", "triton", "--out", ours, "--force").code == 0
    assert not (ours / "Dockerfile.server").exists()
    # A bundle is no export: --force never takes one.
    kept = tmp_path / "kept.gpusq"
    shutil.copytree(bundle, kept)
    assert run_main(export, bundle, "--to", "onnx", "--out", kept, "--force").code == 5
    assert (kept / "manifest.json").is_file()


def test_bad_bundles_and_options_are_told(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gpusq"
    shutil.copytree(bundle, broken)
    with (broken / "model.onnx").open("ab") as stream:
        stream.write(b"more")
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\n")
    for given, words in (
        ((broken, "--to", "onnx"), "model.onnx is not the file that was built"),
        ((tmp_path, "--to", "onnx"), "not a bundle"),
        ((tmp_path / "none", "--to", "onnx"), "no such file"),
        ((bundle, "--to", "onnx", "--labels", labels), "2 labels don't fit the first output, output [-1, 64]"),
        ((bundle, "--to", "onnx", "--labels", tmp_path / "no.txt"), "cannot read the labels"),
        ((bundle, "--to", "onnx", "--name", "a/b"), "'a/b' can't be a model's name"),
        ((bundle, "--to", "onnx", "--out", tmp_path / "no" / "such"), "the folder to write into does not exist"),
    ):
        done = run_main(export, *given)
        assert done.code == 5, (given, done.err)
        assert words in done.err
        assert "Traceback" not in done.err
    assert run_main(export, bundle, "--to", "onnx", "--cpu").code == 2
    assert not bundle.with_name("sparse-onnx").exists()


def test_a_refused_build_is_not_exported(sparse: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "strict.gpusq"
    options = ("--int8", "--sparse", "--calib", photos, "--target", "none", "--min-sqnr", "200", "--out", out)
    assert run_main(build, sparse, *options).code == 5
    with pytest.raises(GpusqError, match="the evidence of a refused build"):
        gpusq_deploy.export(tmp_path / "strict.gpusq.failed", "onnx")


def test_random_calibration_is_told(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "noise.gpusq"
    assert run_main(build, dense, "--int8", "--calib", "random", "--target", "none", "--out", out).code == 0
    assert read_value(out / "manifest.json", Manifest).synthetic_calibration
    record = gpusq_deploy.export(out, "docker").record
    assert record.remarks[0] == "calibrated on random data: its ranges mean nothing, don't deploy this"
    assert record.remarks[0] in (tmp_path / "noise-docker" / "README.md").read_text()
