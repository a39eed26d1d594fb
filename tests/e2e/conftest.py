"""Tiny checkpoints and real images, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from photographs import CALIBRATION, write_photographs

from gpusq_deploy.cli.build import main as build
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text, module_from_arch
from gpusq_deploy.frontend.checkpoint.load import save_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.numerics.two_four import magnitude_mask

from commands import Finished, run_main  # isort: skip

ARCH = "timm:vit_tiny_patch16_224"
ARGUMENTS = ("img_size=32", "patch_size=8", "embed_dim=64", "depth=2", "num_heads=1", "num_classes=64")


def save_tiny_vit(path: Path, *, sparse: bool) -> Path:
    """A seeded two-block ViT, 32 px; every GEMM dimension a multiple of 64."""
    torch.manual_seed(0)
    arch = arch_from_text(ARCH, ARGUMENTS)
    module = module_from_arch(arch)
    for name, weight in module.named_parameters():
        if sparse and name.startswith("blocks.") and weight.ndim == 2:
            weight.data *= torch.from_numpy(magnitude_mask(np.asarray(weight.detach(), dtype=np.float32)))
    save_checkpoint(path, module, arch=arch, preprocessing=preprocessing_of(arch, module))
    return path


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("checkpoints") / "dense.pt", sparse=False)


@pytest.fixture(scope="session")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("checkpoints") / "sparse.pt", sparse=True)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photos"), CALIBRATION, crops=6)


@pytest.fixture(scope="session")
def built(sparse: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """The sparse model, built for A100 and Orin: the bundle, and what the command printed."""
    out = tmp_path_factory.mktemp("bundles") / "sparse.gpusq"
    options = ("--int8", "--sparse", "--calib", photos, "--target", "a100", "--target", "orin")
    return out, run_main(build, sparse, *options, "--out", out, "--json")


@pytest.fixture
def bundle(built: tuple[Path, Finished]) -> Path:
    path, done = built
    assert done.code == 0, done.err
    return path
