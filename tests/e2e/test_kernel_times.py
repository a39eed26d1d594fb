"""gpusq-inspect --kernels of a built bundle: the measured time of each kernel beside the predicted one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run_main
from pages import Page

from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.bundle.report.kernel_times import times_of_kernels
from gpusq_deploy.cli.inspect import main as inspect

pytestmark = pytest.mark.slow


def test_measured_times_stand_beside_predicted_ones(bundle: Path, tmp_path: Path) -> None:
    """A profile as trtexec writes it, of every kernel twice as slow as predicted."""
    found = read_bundle(bundle)
    (engine,) = found.receipt.engines
    predicted = times_of_kernels(found, engine).predicted
    assert len(predicted) > len(engine.engine_layers) // 2
    profile, target = tmp_path / "profile.json", tmp_path / "page.html"
    entries = [{"name": name, "averageMs": 2 * time / 1e3} for name, time in predicted.items()]
    profile.write_text(json.dumps([{"count": 100}, *entries]))
    done = run_main(inspect, bundle, "--kernels", profile, "--html", target)
    assert done.code == 0, done.err
    assert "measured / predicted: 2.00, median of" in done.err
    page = Page(target.read_text("utf-8"))
    longest = max(predicted.values())
    assert {"predicted µs", "measured µs", f"{longest:.1f}", f"{2 * longest:.1f}"} <= set(page.words)
    assert "Predicted for A100 80 GB SXM at batch 8, not measured" in page.text
    assert "measured µs" not in Page((bundle / "report.html").read_text("utf-8")).words
