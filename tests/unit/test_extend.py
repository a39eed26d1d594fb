"""Further engines for a bundle that exists: what is kept, what is recorded, what is printed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import bundles
import pytest
from commands import run_main

from gpusq_deploy.artifacts.receipt import SkippedTarget
from gpusq_deploy.bundle import read_bundle, require_whole
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.targets import Target, skipped_target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "my model.gpusq")


def test_the_command_for_the_device_can_be_pasted(bundle: Path) -> None:
    done = run_main(build, bundle, "--target", "orin", "--json")
    assert done.code == 0, done.err
    (skipped,) = done.json()["skipped"]
    assert skipped["command"] == "gpusq-build 'my model.gpusq' --target orin"
    assert f"on the device run: {skipped['command']}\n" in done.err


@pytest.mark.parametrize("place", [".", "engines/..", "../my model.gpusq"])
def test_a_bundle_can_be_extended_from_within(bundle: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(bundle)
    done = run_main(build, place, "--target", "orin", "--json")
    assert done.code == 0, done.err
    assert done.json()["skipped"][0]["command"] == "gpusq-build 'my model.gpusq' --target orin"
    assert Path(done.json()["bundle"]).name == bundle.name
    require_whole(read_bundle(bundle))


@needs_rtx
def test_an_engine_stays_where_none_can_be_built_in_its_place(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(build, bundle, "--target", "a100").code == 0
    before = read_bundle(bundle)

    def refuse(target: Target, *, bundle: str, **_options: object) -> SkippedTarget:
        return skipped_target(target, bundle=bundle, reasons=["not tensorrt-rtx: it is not installed"])

    monkeypatch.setattr("gpusq_deploy.build_engines.choose_backend", refuse)
    done = run_main(build, bundle, "--target", "a100", "--target", "orin", "--json")
    assert done.code == 0, done.err
    assert "the engine for a100 that the bundle has is kept as it is" in done.err
    after = read_bundle(bundle)
    assert after.receipt.engines == before.receipt.engines
    assert [entry.target for entry in after.receipt.skipped] == ["orin"]
    require_whole(after)
    monkeypatch.undo()
    assert run_main(build, bundle, "--target", "rtx40").code == 0
    assert [engine.target for engine in read_bundle(bundle).receipt.engines] == ["a100", "rtx40"]
