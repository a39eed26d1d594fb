"""The main job as a user types it: installed commands, a folder of one's own, a model of a new user's kind.

`make test-newest` and `make test-oldest` run this on a wheel, with the versions that pip gives to users.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

pytestmark = [pytest.mark.slow, pytest.mark.main_job]

COMMANDS = Path(sys.prefix) / "bin"
ARCH_ARGS: dict[str, Any] = {"img_size": 64, "depth": 2, "num_classes": 64}
ARCH = ("--arch", "timm:vit_tiny_patch16_224", *(f"--arch-arg={name}={value}" for name, value in ARCH_ARGS.items()))


def run(folder: Path, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [str(COMMANDS / f"gpusq-{command}"), *map(str, arguments)]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def answer(folder: Path, command: str, *arguments: str | Path) -> Any:
    done = run(folder, command, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint, photographs, and what the build made of them."""
    place = tmp_path_factory.mktemp("a user's folder")
    torch.manual_seed(0)
    torch.save(timm.create_model("vit_tiny_patch16_224", **ARCH_ARGS).state_dict(), place / "model.pt")
    options = ("--int8", "--sparse", "--prune", "magnitude", "--calib", photos, "--batch", "1:2:4")
    built = answer(place, "build", "model.pt", *ARCH, *options)
    assert (built["int8_layers"], built["sparse_layers"]) == (10, 8)
    return place


def test_the_bundle_is_clean_and_its_layers_are_explained(folder: Path) -> None:
    assert answer(folder, "validate", "model.gpusq")["findings"] == []
    (engine,) = answer(folder, "inspect", "model.gpusq")["receipt"]["engines"]
    assert engine["totals"]["gemms"] == {"int8": 10}


def test_it_is_measured_and_compared_with_itself(folder: Path) -> None:
    for name in ("base.json", "head.json"):
        options = ("--runtime", "onnxruntime", "--batch", "1", "--iterations", "10", "--json", name)
        done = run(folder, "bench", "model.gpusq", *options)
        assert done.returncode == 0, done.stderr
    compared = run(folder, "compare", "base.json", "head.json")
    assert compared.returncode in {0, 1, 3}, compared.stderr  # a busy machine may say anything but "not comparable"


def test_ranges_of_gpusq_calibrate_are_built_from(folder: Path, photos: Path) -> None:
    answer(folder, "calibrate", "model.pt", *ARCH, "--calib", photos, "--out", "ranges.json")
    options = ("--int8", "--ranges", "ranges.json", "--out", "again.gpusq")
    assert answer(folder, "build", "model.pt", *ARCH, *options)["int8_layers"] == 10


def test_trained_in_int8_it_is_built_without_data_and_a_quiet_command_says_nothing(folder: Path, photos: Path) -> None:
    options = ("--data", photos, "--stage", "prune,qat", "--epochs", "1", "--out", "trained.pt")
    assert len(answer(folder, "compress", "model.pt", *ARCH, *options)["int8"]) == 10
    done = run(folder, "build", "trained.pt", "--int8", "--sparse", "--target", "none", "--quiet")
    # Libraries speak as the process ends too: of what they believe was not given back.
    assert (done.returncode, done.stderr) == (0, "")
