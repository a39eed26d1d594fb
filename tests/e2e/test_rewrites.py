"""A build compares its graph with and without each rewrite, says what it found, and shows how far it is."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from commands import Finished, run_main

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.compile.pipeline import compile_checkpoint
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.progress import Reporter

pytestmark = pytest.mark.slow


def test_the_plan_says_which_rewrites_were_compared_and_by_what(dense: Path, tmp_path: Path) -> None:
    done = run_main(build, dense, "--rewrites", "measured", "--out", tmp_path / "b")
    notes = read_bundle(tmp_path / "b").plan.notes
    (note,) = [note for note in notes if note.startswith("graph rewrite attention-scale (2 places) ")]
    assert "kernels with it, " in note
    assert note in done.err
    assert "graph rewrites compared by tensorrt-rtx for a100, fp16, batch 8, nothing timed" in notes


def test_another_gpu_stands_in_where_nobody_builds_ahead(dense: Path, tmp_path: Path) -> None:
    done = run_main(build, dense, "--rewrites", "measured", "--target", "orin", "--out", tmp_path / "b")
    assert done.code == 0, done.err
    notes = read_bundle(tmp_path / "b").plan.notes
    by = "tensorrt-rtx for a100, which stands in for the targets, fp16, batch 8, nothing timed"
    assert f"graph rewrites compared by {by}" in notes


def test_all_rewrites_are_applied_where_nothing_else_is_asked(built: tuple[Path, Finished]) -> None:
    bundle = read_bundle(built[0])
    assert bundle.manifest.options.rewrites == "all"
    assert "graph rewrite attention-scale (2 places) applied" in bundle.plan.notes


def test_every_long_step_shows_progress_to_its_end(dense: Path, photos: Path, tmp_path: Path) -> None:
    heard: dict[str, list[tuple[int, int]]] = {}
    request = BuildRequest(
        model=dense,
        arch=None,
        quantize=True,
        sparse=False,
        float_type="fp16",
        recipe=None,
        calib=str(photos),
        targets=[find_target("a100")],
        batch=BatchRange(minimum=1, optimum=8, maximum=32),
        opset=20,
        out=tmp_path / "b",
        force=False,
    )
    reporter = Reporter(
        say=lambda _: None, progress=lambda label, done, total: heard.setdefault(label, []).append((done, total))
    )
    compile_checkpoint(request, reporter)
    steps = ["exporting", "simplifying", "rewriting", "writing", "calibrating", "verifying"]
    assert list(heard)[: len(steps)] == steps
    for label in steps:
        done = [count for count, _ in heard[label]]
        assert done == sorted(done), label
        assert heard[label][-1][0] == heard[label][-1][1], label


def test_an_operator_that_cannot_be_parsed_is_told_before_any_image_is_seen(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the compiler can't parse, with its module; without the path of a scratch file. Nothing is left behind."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform", exc_type=ImportError)
    package: Any = types.ModuleType("shrinking_models")
    package.make = Shrinking
    monkeypatch.setitem(sys.modules, "shrinking_models", package)
    torch.manual_seed(0)
    torch.save(Shrinking().state_dict(), tmp_path / "m.pt")
    out = tmp_path / "m.gpusq"
    options = ("--arch", "shrinking_models:make", "--int8", "--calib", photos, "--out", out)
    done = run_main(build, tmp_path / "m.pt", *options)
    assert done.code == 5
    assert run_main(build, tmp_path / "m.pt", *options, "--dry-run").err.endswith(done.err[done.err.index("error: ") :])
    assert "tensorrt-rtx can't parse Resize" in done.err
    assert "neck.shrink" in done.err
    assert "calibrating" not in done.err
    assert "model.onnx:" not in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt"]


class Shrink(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[n, c, h, w] to [n, c, 4, 4]."""
        return torch.nn.functional.interpolate(values, size=(4, 4), mode="bicubic", antialias=True)


class Shrinking(torch.nn.Module):
    gpusq_preprocessing: ClassVar[dict[str, Any]] = {
        "channels": 3,
        "height": 32,
        "width": 32,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }

    def __init__(self) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 64, 4, 4)
        self.neck = torch.nn.ModuleDict({"shrink": Shrink()})
        self.head = torch.nn.Linear(64, 64)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, 32, 32] to [n, 64]."""
        shrunk: torch.Tensor = self.neck["shrink"](self.patches(images))
        answer: torch.Tensor = self.head(shrunk.mean((2, 3)))
        return answer
