"""One-shot pruning of a real DINOv2 ViT-S/14 through the real command, judged on photographs it has not seen."""

from __future__ import annotations

from pathlib import Path

import dinov2
import numpy as np
import pytest
import torch
from commands import run_main
from photographs import CALIBRATION, UNSEEN, write_photographs

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.calibration.data import Batches, open_source
from gpusq_deploy.cli.compress import main as compress
from gpusq_deploy.frontend.checkpoint.architecture import module_from_arch
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.real_weights]


def unseen(folder: Path, preprocessing: Preprocessing) -> torch.Tensor:
    write_photographs(folder, UNSEEN, crops=2)
    return torch.from_numpy(np.concatenate(list(Batches(source=open_source(str(folder), preprocessing), size=8))))


def test_second_order_keeps_the_patch_tokens_of_unseen_photographs(tmp_path: Path) -> None:
    source, out = tmp_path / "dino.pt", tmp_path / "dino-24.pt"
    torch.save(dinov2.state_dict(), source)
    photos = write_photographs(tmp_path / "photos", CALIBRATION, crops=10)
    options = ("--method", "second-order", "--epochs", "0", "--held-out", "0.1", "--out", out, "--json")
    done = run_main(compress, source, *dinov2.BUILD_ARGUMENTS, "--data", photos, *options)
    assert done.code == 0, done.err
    assert done.json()["held_out"]["measure"] == "cosine"
    pruned = load_checkpoint(out)
    linears = [child for child in pruned.module.modules() if isinstance(child, torch.nn.Linear)]
    assert len(linears) == 48
    assert all(int((linear.weight.reshape(-1, 4) != 0).sum(1).max()) == 2 for linear in linears)
    dense = module_from_arch(pruned.arch)
    dense.load_state_dict(torch.load(source, weights_only=True))
    images = unseen(tmp_path / "unseen", pruned.preprocessing)
    with torch.no_grad():
        wanted, got = dense.eval()(images), pruned.module(images)
    cosine = torch.nn.functional.cosine_similarity(wanted[:, 1:], got[:, 1:], dim=-1)
    assert float(cosine.mean()) >= 0.70
