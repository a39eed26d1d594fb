"""A value of a million in the residual stream: FP16 can't hold it, and the build finds it, keeps it and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_models
import torch
from commands import run_main

from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.validate import main as validate
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.numerics.error import sqnr_db

pytestmark = pytest.mark.slow

DEPTH = 3
ARCH = (
    "--arch",
    f"timm:{tiny_models.NAME}",
    *(
        word
        for name, value in {**tiny_models.ARGUMENTS, "depth": DEPTH}.items()
        for word in ("--arch-arg", f"{name}={value}")
    ),
)


@pytest.fixture(scope="module")
def planted() -> torch.nn.Module:
    module = tiny_models.vit(depth=DEPTH)
    with torch.no_grad():
        module.get_parameter("blocks.0.mlp.fc2.bias")[3] = 1e6
    return module.eval()


def answers(model: torch.nn.Module, batch: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(batch)), np.float32)


@pytest.mark.parametrize(
    ("options", "least"),
    [(("--fp16",), 50), (("--int8",), 30), (("--fp8", "--target", "rtx40"), 20), (("--int4",), 10)],
)
def test_a_planted_outlier_stays_float32(
    planted: torch.nn.Module, tmp_path: Path, options: tuple[str, ...], least: float
) -> None:
    torch.save(planted.state_dict(), tmp_path / "m.pt")
    np.save(tmp_path / "c.npy", tiny_models.images(16, seed=5))
    out = tmp_path / "out"
    done = run_main(build, tmp_path / "m.pt", *ARCH, *options, "--calib", tmp_path / "c.npy", "--out", out)
    assert done.code == 0, done.err
    unseen, session = tiny_models.images(4, seed=9), open_onnx(out / "model.onnx")
    got = session.run({"input": unseen})["output"]
    session.close()
    assert sqnr_db(answers(planted, unseen), got) >= least
    bundle = read_bundle(out)
    wide = {tensor.module for tensor in bundle.plan.wide if not tensor.constant}
    assert wide == {"blocks.0", "blocks.0.mlp.fc2", "blocks.1", "blocks.2"}
    # Of what smoothing changed it is a bound from above.
    assert all(1e6 * (1 - 1e-3) <= tensor.amax <= 1.1e6 for tensor in bundle.plan.wide)
    (engine,) = bundle.receipt.engines
    for tensor in bundle.plan.wide:
        assert [note for note in bundle.plan.notes if tensor.tensor in note]
        assert [note for note in engine.notes if tensor.tensor in note]
    (line,) = (line for line in done.err.splitlines() if line.startswith("kept in FP32, since FP16 can't hold them: "))
    assert any(f": {tensor.tensor} of {tensor.module} reaches 1e+06" in line for tensor in bundle.plan.wide)
    assert line.endswith(f" and {len(bundle.plan.wide) - 1} more")
    assert engine.totals.attention_fused == DEPTH
    assert "fp32" not in engine.totals.gemms
    assert run_main(validate, out).code == 0


def test_a_sparse_layer_whose_product_fp16_cant_hold_runs_dense_and_the_others_dont(tmp_path: Path) -> None:
    module = tiny_models.vit(depth=DEPTH)
    with torch.no_grad():
        module.get_parameter("blocks.0.mlp.fc2.weight")[3] = 1e6
    torch.save(module.state_dict(), tmp_path / "m.pt")
    np.save(tmp_path / "c.npy", tiny_models.images(16, seed=5))
    out, options = tmp_path / "out", ("--fp16", "--sparse", "--prune", "magnitude", "--calib", tmp_path / "c.npy")
    done = run_main(build, tmp_path / "m.pt", *ARCH, *options, "--out", out)
    assert done.code == 0, done.err
    kept = {layer.layer: layer for layer in read_bundle(out).plan.layers if layer.precision == "fp32"}
    assert "blocks.0.mlp.fc2" in kept
    assert not any(layer.sparse for layer in kept.values())
    assert "have no FP32" in kept["blocks.0.mlp.fc2"].sparse_reason
    assert any(layer.sparse for layer in read_bundle(out).plan.layers)
    assert run_main(validate, out).code == 0


def test_without_data_the_plan_says_that_nobody_looked(tmp_path: Path) -> None:
    tiny_models.write_vit(tmp_path / "m.pt", depth=DEPTH)
    done = run_main(build, tmp_path / "m.pt", *ARCH, "--fp16", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    plan = read_bundle(tmp_path / "out").plan
    assert plan.wide == ()
    assert [note for note in plan.notes if "was not checked" in note]
