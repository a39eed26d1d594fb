"""A slice of the GPU suite on the GPU at hand. Skipped, with the reason, where none answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.benchmarks import gpu_suite
from gpusq_deploy.benchmarks.gpu_results import SuiteReport
from gpusq_deploy.engines.gpu import NoGpu, find_gpu
from gpusq_deploy.engines.runtimes import why_not

pytestmark = pytest.mark.gpu


def test_products_agree_with_their_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = why_not("tensorrt-rtx")
    if refusal is not None:
        pytest.skip(f"tensorrt-rtx can't run plans here: {refusal}")
    gpu = find_gpu()
    assert not isinstance(gpu, NoGpu)
    for step in (["--build-only"], []):
        words = ["gpu_suite", "--folder", str(tmp_path), "--only", "ViT-S proj b8 *", "--minutes", "5", *step]
        monkeypatch.setattr(sys, "argv", words)
        gpu_suite.main()
    cases = [one for one in read_value(tmp_path / "report.json", SuiteReport).cases if one.backend == "tensorrt-rtx"]
    assert len(cases) == 8
    for one in cases:
        assert not one.outcome.why_not, f"{one.case.name} on {gpu.name}: {one.outcome.why_not}"
        assert one.outcome.error is not None
        # A code by rounding, or FP16's precision of the largest value.
        assert one.outcome.error < (0.01 if one.case.output == "fp16" else 1.5)
