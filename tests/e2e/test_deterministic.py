"""The same checkpoint, data and options: the same bytes, in another process that hashes and schedules otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_an_int8_build_is_the_same_bytes_in_another_process(
    bundle: Path, sparse: Path, photos: Path, tmp_path: Path
) -> None:
    """With calibration, smoothing and rounding; `bundle` was built in this process with the same options."""
    out = tmp_path / "again.gpusq"
    options = ["--int8", "--sparse", "--calib", str(photos), "--target", "a100", "--target", "orin"]
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "gpusq_deploy", "build", str(sparse), *options, "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("model.onnx", "plan.json", "calibration.json", "engines/a100.plan"):
        assert (out / name).read_bytes() == (bundle / name).read_bytes(), name
