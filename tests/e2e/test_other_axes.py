"""Models whose input has other than four axes, given as arrays, from the checkpoint to the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_main

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.artifacts.calibration import CalibrationTable
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.calibrate import main as calibrate
from gpusq_deploy.cli.validate import main as validate

pytestmark = pytest.mark.slow

MODELS = """
import torch
from torch import nn

def seq():
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64), nn.Flatten(), nn.Linear(64 * 8, 5))

def video():
    return nn.Sequential(nn.Conv3d(3, 32, (2, 16, 16), (2, 16, 16)), nn.Flatten(), nn.Linear(32 * 2 * 4, 5))

def flat():
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))
"""
SHAPES = {"seq": (8, 64), "video": (3, 4, 32, 32), "flat": (64,)}


@pytest.mark.parametrize("kind", SHAPES)
def test_it_builds_from_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    (tmp_path / f"axes_{kind}.py").write_text(MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    module = getattr(__import__(f"axes_{kind}"), kind)()
    torch.save(module.state_dict(), tmp_path / "model.pt")
    data = np.random.default_rng(0).standard_normal((24, *SHAPES[kind])).astype(np.float32)
    np.save(tmp_path / "data.npy", data)
    common = [tmp_path / "model.pt", "--arch", f"axes_{kind}:{kind}", "--calib", tmp_path / "data.npy"]
    done = run_main(build, *common, "--int8", "--out", tmp_path / "m.gpusq", "--json")
    assert done.code == 0, done.err
    assert run_main(validate, tmp_path / "m.gpusq").code == 0
    ranges = tmp_path / "ranges.json"
    done = run_main(calibrate, *common, "--calib-samples", 10, "--out", ranges)
    assert done.code == 0, done.err
    table = read_value(ranges, CalibrationTable)
    assert (table.images, table.source) == (8, f"{tmp_path / 'data.npy'} (10 of 24 samples)")
    # Two of the ten are kept apart, spread over them.
    layer = next(entry for entry in table.ranges if entry.tensor == "input" or entry.layer == "0")
    used = data[[index * 24 // 10 for index in range(10) if index not in {0, 5}]]
    assert layer.amax == pytest.approx(float(np.abs(used).max()), rel=1e-6)
