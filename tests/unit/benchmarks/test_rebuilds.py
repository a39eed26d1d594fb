"""Builds of an engine by the real builder, up to the call of the device."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import bundles
import pytest

from gpusq_deploy.artifacts import MODEL, digest_of_file
from gpusq_deploy.benchmarks.rebuilds import rebuilt, require_rebuildable
from gpusq_deploy.benchmarks.report import builds_text
from gpusq_deploy.benchmarks.subject import MeasuredModel, find_subject
from gpusq_deploy.bundle.files import new_bundle
from gpusq_deploy.compile.add_engines import extend_bundle
from gpusq_deploy.engines import RuntimeChoice
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import SILENT, Reporter

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)


def _nothing_against(_name: str) -> None:
    return None


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    with new_bundle(tmp_path / "b.gpusq", force=False) as folder:
        bundles.fill(folder)
    extend_bundle(tmp_path / "b.gpusq", [find_target("a100")], SILENT, engine_options=["level=2"])
    return tmp_path / "b.gpusq"


@needs_rtx
@pytest.mark.slow
def test_builds_are_made_anew_and_told_apart(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusq_deploy.engines.backend_choice.why_not", _nothing_against)
    subject = find_subject(bundle, "tensorrt-rtx")
    said: list[str] = []
    reporter = Reporter(say=said.append, progress=lambda _label, _done, _total: None)
    with rebuilt(subject, 3, reporter) as measured:
        assert measured.rebuilt is not None
        builds, paths = measured.rebuilt.builds, measured.rebuilt.paths
        assert [digest_of_file(path) for path in paths] == [entry.engine_digest for entry in builds.engines]
        assert (measured.rebuilt.model, measured.name) == (bundle / MODEL, "b.gpusq/model.onnx")
    assert not any(path.exists() for path in paths)
    assert (builds.target, builds.options, builds.sparse) == ("a100", ("level=2",), False)
    assert builds.version.startswith("tensorrt-rtx ")
    assert len({entry.layers_digest for entry in builds.engines}) == 1, "tensorrt-rtx times nothing while it builds"
    assert said[:3] == [f"building a100 with tensorrt-rtx, {number} of 3" for number in (1, 2, 3)]
    assert said[3] == builds_text(builds)


def test_what_runs_no_engine_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    choice = RuntimeChoice(name="onnxruntime", reason="not tensorrt: no GPU")
    with pytest.raises(GpusqError, match="nothing is built for onnxruntime, which runs the ONNX model itself"):
        require_rebuildable(MeasuredModel(tmp_path / "m.onnx", "m.onnx", choice, None))
    alone = MeasuredModel(tmp_path / "m.plan", "m.plan", RuntimeChoice(name="tensorrt", reason=""), None)
    with pytest.raises(GpusqError, match="outside a bundle doesn't say what it was built from"):
        require_rebuildable(alone)
