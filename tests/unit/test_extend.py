"""Further engines for a bundle that exists: what is kept, what is recorded, what is printed."""

from __future__ import annotations

from pathlib import Path

import bundles
import pytest
from commands import run_main

from gpusq_deploy.bundle import read_bundle, require_whole
from gpusq_deploy.cli.build import main as build


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
