"""Whatever is damaged in an input: the commands answer with their own exit codes, a sentence, and leave nothing."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import bundles
import producers
import pytest
import safetensors.torch
import tiny_models
import torch
import transformers
from commands import Finished, run_main
from damage import EDITS, Edit, damaged, damaged_inside
from hypothesis import given, settings, strategies as st

from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.inspect import main as inspect
from gpusq_deploy.cli.validate import main as validate
from gpusq_deploy.graph.files import save_model

# torch and zipfile warn about what they find in damaged files; users see it, and it is true.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
ARCH = (
    "--arch",
    f"timm:{producers.SPEC.name}",
    *(word for name, value in producers.SPEC.arguments.items() for word in ("--arch-arg", f"{name}={value}")),
)
# An opset that no build gets past: what is read well ends there, with a sentence too, before the slow part.
NO_OPSET = ("--opset", "11")
RECIPE = """schema = "gpusq.recipe/1"
name = "mine"
description = "all of it"

[[rule]]
match = "blocks.*"
kind = "linear"
precision = "int8"
calibrator = { name = "percentile", percentile = 99.9 }
reason = "because"
"""

few = settings(max_examples=30, deadline=None)
edited = given(edits=EDITS)
Write = Callable[[Path], Path]


def answered(done: Finished, *, codes: tuple[int, ...]) -> None:
    """One of the command's own exit codes; with 5 comes a sentence with its place and what to do."""
    assert done.code in codes, done.err
    assert "Traceback" not in done.err
    if done.code == 5:
        assert done.out == ""
        lines = done.err.splitlines()
        what = next(index for index, line in enumerate(lines) if line.startswith("error: "))
        assert len(lines[what]) > len("error: ")
        assert [line[:9] for line in lines[-2:]] == ["  where: ", "  try:   "], done.err


def built(folder: Path, model: Path, *options: object) -> None:
    """A build that can't end well: it must end with 5, and nothing beside the model."""
    before = sorted(folder.iterdir())
    answered(run_main(build, model, *options, *NO_OPSET, "--out", folder / "out"), codes=(5,))
    assert sorted(folder.iterdir()) == before


def checked(path: Path) -> None:
    answered(run_main(validate, path), codes=(0, 1, 5))


@cache
def checkpoint(kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        state = producers.model().state_dict()
        if kind == "safetensors":
            safetensors.torch.save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=kind != "legacy")
        return path.read_bytes()


@cache
def onnx_model() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_model(tiny_models.exported_vit().model, Path(folder) / "m.onnx")
        return (Path(folder) / "m.onnx").read_bytes()


def both(data: bytes, name: str, *options: object) -> None:
    with tempfile.TemporaryDirectory() as text:
        path = Path(text) / name
        path.write_bytes(data)
        checked(path)
        built(Path(text), path, *ARCH, *options)


@few
@edited
@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
def test_damaged_checkpoints(kind: str, edits: list[Edit]) -> None:
    both(damaged(checkpoint(kind), edits), f"model.{'safetensors' if kind == 'safetensors' else 'pt'}")


@few
@given(edits=EDITS, entry=st.integers(0, 20))
@pytest.mark.parametrize("name", ["plain.pt", "modelopt_int8.pt", "pt2e_x86.pt2"])
def test_archives_that_are_whole_around_damage(name: str, edits: list[Edit], entry: int) -> None:
    data = checkpoint("pt") if name == "plain.pt" else (FIXTURES / name).read_bytes()
    both(damaged_inside(data, edits, entry), name, "--int8")


@few
@edited
def test_safetensors_with_a_damaged_header_of_the_right_length(edits: list[Edit]) -> None:
    data = checkpoint("safetensors")
    size = struct.unpack("<Q", data[:8])[0]
    header = damaged(data[8 : 8 + size], edits)
    both(struct.pack("<Q", len(header)) + header + data[8 + size :], "model.safetensors")


@few
@edited
def test_damaged_onnx_models(edits: list[Edit]) -> None:
    with tempfile.TemporaryDirectory() as text:
        path = Path(text) / "model.onnx"
        path.write_bytes(damaged(onnx_model(), edits))
        checked(path)


@few
@edited
def test_damaged_calibration_caches(edits: list[Edit]) -> None:
    lines = [f"{name}: {struct.pack('>f', 0.02).hex()}" for name in ("input", "/blocks/blocks.0/norm1/Add_1_output_0")]
    cache_text = "\n".join(["TRT-8601-EntropyCalibration2", *lines]).encode()
    with tempfile.TemporaryDirectory() as text:
        model, ranges = Path(text) / "model.pt", Path(text) / "old.cache"
        model.write_bytes(checkpoint("pt"))
        ranges.write_bytes(damaged(cache_text, edits))
        built(Path(text), model, *ARCH, "--int8", "--ranges", ranges)


@few
@edited
def test_damaged_recipes(edits: list[Edit]) -> None:
    with tempfile.TemporaryDirectory() as text:
        model, recipe = Path(text) / "model.pt", Path(text) / "mine.toml"
        model.write_bytes(checkpoint("pt"))
        recipe.write_bytes(damaged(RECIPE.encode(), edits))
        built(Path(text), model, *ARCH, "--int8", "--calib", "random", "--recipe", recipe)
        answered(run_main(validate, model, "--recipe", recipe), codes=(0, 1, 5))


@few
@edited
@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "receipt.json", "calibration.json", "model.onnx"])
def test_damaged_bundles(name: str, edits: list[Edit]) -> None:
    with tempfile.TemporaryDirectory() as text:
        bundle = bundles.write(Path(text) / "b")
        path = bundle / name
        path.write_bytes(damaged(path.read_bytes(), edits))
        before = bundles.listing(bundle)
        checked(bundle)
        answered(run_main(inspect, bundle), codes=(0, 5))
        shutil.rmtree(bundle / "engines")  # what is missing too is found before anything is built
        answered(run_main(build, bundle, "--target", "a100"), codes=(5,))
        assert {**bundles.listing(bundle), "engines/orin.plan": b"an engine"} == before


@cache
def saved_folder() -> dict[str, bytes]:
    """What save_pretrained leaves of a tiny ViT, and its preprocessing."""
    with tempfile.TemporaryDirectory() as text:
        library: Any = transformers
        config = library.ViTConfig(
            image_size=16,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
        library.ViTModel(config).save_pretrained(text)
        size = {"height": 16, "width": 16}
        how = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "size": {"shortest_edge": 18}}
        how |= {"do_center_crop": True, "crop_size": size, "do_rescale": True, "rescale_factor": 1 / 255}
        (Path(text) / "preprocessor_config.json").write_text(json.dumps(how))
        return {path.name: path.read_bytes() for path in Path(text).iterdir()}


ODD = st.sampled_from([None, True, 0, -1, 7, 0.5, float("nan"), "", "64", "gelu_neww", [], [0], ["x"], {}, {"x": 1}])


@few
@given(data=st.data())
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_saved_folders_with_odd_configs(name: str, data: st.DataObject) -> None:
    files = saved_folder()
    if data.draw(st.booleans()):
        content = damaged(files[name], data.draw(EDITS))
    else:
        values = json.loads(files[name])
        content = json.dumps({**values, data.draw(st.sampled_from(sorted(values))): data.draw(ODD)}).encode()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text) / "saved"
        folder.mkdir()
        for other, whole in files.items():
            (folder / other).write_bytes(content if other == name else whole)
        checked(folder)
        built(Path(text), folder)
