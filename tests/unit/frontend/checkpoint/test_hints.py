"""Errors about an architecture name the option that mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, module_from_arch
from gpusq_deploy.frontend.checkpoint.fit_hints import fit_hint
from gpusq_deploy.frontend.checkpoint.input_shape import require_one_input
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of


@pytest.mark.parametrize(
    ("file", "asked"),
    [
        ({"num_classes": 7}, {"num_classes": 5}),
        ({"num_classes": 7}, {"num_classes": 0}),
        ({"num_classes": 0}, {"num_classes": 7}),
        ({"img_size": 48}, {"img_size": 32}),
        ({"img_size": 48, "class_token": False, "global_pool": "avg"}, None),
        ({"in_chans": 1}, {"in_chans": 3}),
        ({"patch_size": 4, "img_size": 16}, {"patch_size": 8, "img_size": 32}),
        ({"global_pool": "avg"}, {"global_pool": "token"}),
        ({"global_pool": "token"}, {"global_pool": "avg"}),
        ({"num_classes": 7, "img_size": 48}, {"num_classes": 5, "img_size": 32}),
    ],
)
def test_the_arguments_that_a_hint_names_make_the_weights_fit(
    tmp_path: Path, file: dict[str, Any], asked: dict[str, Any] | None
) -> None:
    other = {**file, "img_size": 32} if asked is None else asked
    expected, state = (tiny_models.vit_spec(**arguments) for arguments in (other, file))
    weights = module_from_arch(state).state_dict()
    hint = fit_hint(module_from_arch(expected).state_dict(), weights, expected)
    given = arch_from_text("timm:x", hint.split()[1::2]).arguments
    assert given == {name: value for name, value in file.items() if other[name] != value}
    path = tmp_path / "model.pt"
    torch.save(weights, path)
    load_checkpoint(path, arch=ArchSpec(source="timm", name=state.name, arguments={**expected.arguments, **given}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("vit_small_patch16_224", "timm:vit_small_patch16_224"),
        ("vit_small_patch14_dinov2.lvd142m", "timm:vit_small_patch14_dinov2.lvd142m"),
        ("vit_b_16", "torchvision:vit_b_16"),
        ("resnet50", "timm:resnet50 or torchvision:resnet50"),
        ("ViTForImageClassification", "transformers:ViTForImageClassification"),
        ("timm/vit_small_patch16_224", "timm:vit_small_patch16_224"),
        ("vit_smal_patch16_224", "timm:vit_small_patch16_224"),
    ],
)
def test_a_bare_name_is_told_its_library(text: str, meant: str) -> None:
    with pytest.raises(GpusqError, match="not an architecture") as caught:
        arch_from_text(text)
    assert caught.value.hint == f"did you mean {meant}?"


FACTORY = """
import torch
import helper_of_this_test

def make(wide=2):
    import helper_of_this_test
    return torch.nn.Linear(helper_of_this_test.SIZE, wide)
"""


def test_a_factory_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "factory_of_this_test.py").write_text(FACTORY)
    (tmp_path / "helper_of_this_test.py").write_text("SIZE = 5\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    module: Any = module_from_arch(arch_from_text("factory_of_this_test:make", ["wide=3"]))
    assert (module.in_features, module.out_features) == (5, 3)
    assert sys.path == before
    with pytest.raises(GpusqError, match="cannot import") as caught:
        module_from_arch(arch_from_text("factory_of_this_test.py:make"))
    assert caught.value.hint == "did you mean factory_of_this_test:make?"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["build", "calibrate", "compress", "validate"])
def test_a_missing_checkpoint_is_told_before_torch_is_loaded(tmp_path: Path, command: str) -> None:
    """An import of torch would fail here."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    options = {"calibrate": ["--calib", "random"], "compress": ["--data", str(tmp_path)]}.get(command, [])
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    ran = subprocess.run(
        [sys.executable, "-m", "gpusq_deploy", command, "none.pt", "--arch", "timm:vit_tiny_patch16_224", *options],
        env=where,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, "error: no such file" in ran.stderr) == (5, True), ran.stderr


class TwoInputs(torch.nn.Module):
    def forward(self, image: torch.Tensor, mask: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return image * mask * scale


class NamedInput(torch.nn.Module):
    def forward(self, image: torch.Tensor, *, depth: torch.Tensor) -> torch.Tensor:
        return image * depth


class Open(torch.nn.Module):
    def forward(self, *images: torch.Tensor, **options: object) -> torch.Tensor:
        return images[0]


def test_a_model_of_several_inputs_is_refused_by_their_names() -> None:
    arch = ArchSpec(source="factory", name="mine:make")
    for module, names in ((TwoInputs(), "image, mask"), (NamedInput(), "image, depth")):
        with pytest.raises(GpusqError, match=f"one tensor input is built, and this forward needs 2 inputs: {names}"):
            require_one_input(arch, module)
    for fitting in (Open(), torch.nn.Linear(2, 2), tiny_models.vit()):
        require_one_input(arch, fitting)


def test_a_declaration_of_numpys_numbers_is_read() -> None:
    module: Any = torch.nn.Linear(2, 2)
    module.gpusq_preprocessing = {
        "channels": np.int64(3),
        "height": np.int32(8),
        "width": torch.tensor(8),
        "mean": np.array([0.5, 0.5, 0.5], np.float32),
        "std": (np.float32(0.25),) * 3,
        "crop_fraction": np.float32(0.5),
    }
    got = preprocessing_of(ArchSpec(source="factory", name="mine:make"), module)
    assert (got.channels, got.height, got.mean, got.std, got.crop_fraction) == (3, 8, (0.5,) * 3, (0.25,) * 3, 0.5)
    assert {type(value) for value in (got.channels, got.height, got.width)} == {int}
