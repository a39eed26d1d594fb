"""Further engines for a bundle that exists: what is kept, what is recorded, what is printed."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import bundles
import msgspec
import pytest
from commands import run_main

from gpusq_deploy.artifacts.base import json_from_value
from gpusq_deploy.artifacts.bundle_layout import MANIFEST
from gpusq_deploy.artifacts.manifest import EngineOptions
from gpusq_deploy.artifacts.receipt import SkippedTarget
from gpusq_deploy.bundle.files import read_bundle, require_whole
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.engines.targets import Target, skipped_target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "my model.gpusq")


def test_the_command_for_the_device_can_be_pasted(bundle: Path) -> None:
    done = run_main(build, bundle, "--target", "orin", "--json")
    assert done.code == 6, done.err
    (skipped,) = done.json()["skipped"]
    assert skipped["command"] == "gpusq-build 'my model.gpusq' --target orin"
    assert f"on the device run: {skipped['command']}\n" in done.err


@pytest.mark.parametrize("place", [".", "engines/..", "../my model.gpusq"])
def test_a_bundle_can_be_extended_from_within(bundle: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(bundle)
    done = run_main(build, place, "--target", "orin", "--json")
    assert done.code == 6, done.err
    assert done.json()["skipped"][0]["command"] == "gpusq-build 'my model.gpusq' --target orin"
    assert Path(done.json()["bundle"]).name == bundle.name
    require_whole(read_bundle(bundle))


@needs_rtx
def test_an_engine_stays_where_none_can_be_built_in_its_place(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(build, bundle, "--target", "a100").code == 0
    before = read_bundle(bundle)

    def refuse(target: Target, *, bundle: str, **_options: object) -> SkippedTarget:
        return skipped_target(target, bundle=bundle, reasons=["not tensorrt-rtx: it is not installed"])

    monkeypatch.setattr("gpusq_deploy.compile.engine_stage.choose_backend", refuse)
    done = run_main(build, bundle, "--target", "a100", "--target", "orin", "--json")
    assert done.code == 6, done.err
    assert "kept the a100 engine that the bundle has" in done.err
    after = read_bundle(bundle)
    assert after.receipt.engines == before.receipt.engines
    assert [entry.target for entry in after.receipt.skipped] == ["orin"]
    require_whole(after)
    monkeypatch.undo()
    assert run_main(build, bundle, "--target", "rtx40").code == 0
    assert [engine.target for engine in read_bundle(bundle).receipt.engines] == ["a100", "rtx40"]


def test_options_for_a_skipped_engine_are_in_the_command(bundle: Path) -> None:
    options = ("--engine-option", "strip", "--engine-option", "workspace=64", "--engine-option", "timing-cache=c")
    done = run_main(build, bundle, "--target", "orin", *options, "--json")
    assert done.code == 6, done.err
    words = shlex.split(done.json()["skipped"][0]["command"])
    start = ["gpusq-build", "my model.gpusq", "--target", "orin"]
    assert (words[:4], sorted(words[5::2])) == (start, ["strip", "workspace=64"])
    assert read_bundle(bundle).manifest.engine == EngineOptions()


def test_what_a_bundle_remembers_needs_no_word_and_can_be_taken_back(bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    remembered = msgspec.structs.replace(manifest, engine=EngineOptions(strip=True))
    (bundle / MANIFEST).write_bytes(json_from_value(remembered))
    (skipped,) = run_main(build, bundle, "--target", "orin", "--json").json()["skipped"]
    assert skipped["command"] == "gpusq-build 'my model.gpusq' --target orin"
    done = run_main(build, bundle, "--target", "orin", "--engine-option", "strip=default", "--json")
    assert done.json()["skipped"][0]["command"].endswith(" --engine-option strip=default")


@needs_rtx
def test_each_engine_records_what_its_builder_was_asked(bundle: Path) -> None:
    assert run_main(build, bundle, "--target", "a100").code == 0
    options = ("--engine-option", "level=2", "--engine-option", "workspace=64")
    done = run_main(build, bundle, "--target", "rtx40", *options)
    assert done.code == 0, done.err
    asked = {engine.target: engine.options for engine in read_bundle(bundle).receipt.engines}
    assert asked == {"a100": EngineOptions(), "rtx40": EngineOptions(level=2, workspace_mib=64)}


@needs_rtx
def test_what_is_out_of_reach_is_refused_before_any_work_for_all_targets_at_once(bundle: Path) -> None:
    before = bundles.listing(bundle)
    options = ("--engine-option", "version-compatible", "--engine-option", "hardware=ampere-plus")
    done = run_main(build, bundle, "--target", "rtx40", "--target", "a100", *options)
    assert done.code == 5
    for part in ("a100: version-compatible", "rtx40: version-compatible", "rtx40: hardware=ampere-plus"):
        assert part in done.err
    assert "building rtx40" not in done.err
    assert bundles.listing(bundle) == before


def test_no_engine_built_is_no_success_and_says_what_to_do(bundle: Path) -> None:
    done = run_main(build, bundle, "--target", "orin", "--target", "h100")
    assert done.code == 6
    assert "error: no engine was built: orin: " in done.err
    assert "; h100: " in done.err
    assert "gpusq-build 'my model.gpusq' --target orin" in done.err
    told = run_main(build, bundle, "--target", "orin", "--json").json()
    assert (told["exit_code"], told["error"]["place"]) == (6, str(bundle))
    require_whole(read_bundle(bundle))


@needs_rtx
def test_one_engine_of_two_is_a_success_that_says_which_is_missing(bundle: Path) -> None:
    done = run_main(build, bundle, "--target", "a100", "--target", "orin", "--target", "a100")
    assert done.code == 0, done.err
    receipt = read_bundle(bundle).receipt
    assert ([entry.target for entry in receipt.engines], [entry.target for entry in receipt.skipped]) == (
        ["a100"],
        ["orin"],
    )
    assert "no engine orin" in done.out


def test_a_dry_run_reads_the_bundle_and_says_what_would_be_made_of_it(bundle: Path) -> None:
    before = bundles.listing(bundle)
    done = run_main(build, bundle, "--target", "orin", "--engine-option", "strip", "--dry-run", "--json")
    assert done.code == 0, done.err
    told = done.json()
    assert (told["dry_run"], told["source"], told["recipe"], told["batch"]) == (True, "m.pt", "everything", "1:1:1")
    assert (told["engines"][0]["target"], told["engines"][0]["backend"]) == ("orin", None)
    assert told["engines"][0]["command"] == "gpusq-build 'my model.gpusq' --target orin --engine-option strip"
    assert (told["replaced"], told["unpacked"]) == ([], None)
    shown = run_main(build, bundle, "--target", "orin", "--dry-run").out
    assert "(dry run: nothing was written)" in shown
    assert "1 weighted: 1 int8; 0 with 2:4 weights" in shown
    assert bundles.listing(bundle) == before


@pytest.mark.parametrize("option", [("--int8",), ("--calib", "random"), ("--out", "b"), ("--arch", "timm:x")])
def test_an_option_that_a_bundle_has_no_use_for_is_a_usage_error(bundle: Path, option: tuple[str, ...]) -> None:
    for dry in ((), ("--dry-run",)):
        done = run_main(build, bundle, "--target", "orin", *option, *dry)
        assert done.code == 2
        assert f"apply to it, not {option[0]}" in " ".join(done.err.split())


def test_a_dry_run_stops_where_the_build_would(bundle: Path) -> None:
    """A damaged file, an option that the target can't have, nothing to unpack."""
    for options in (("--target", "a100", "--engine-option", "version-compatible"), ("--unpack",)):
        built, tried = (run_main(build, bundle, *options, *dry) for dry in ((), ("--dry-run",)))
        assert (tried.code, tried.err) == (5, built.err)
    (bundle / "model.onnx").write_bytes(b"another model")
    tried = run_main(build, bundle, "--target", "orin", "--dry-run")
    assert (tried.code, "model.onnx is not the file that was built" in tried.err) == (5, True)
    (bundle / MANIFEST).write_text("{}")
    assert run_main(build, bundle, "--target", "orin", "--dry-run").code == 5


@needs_rtx
def test_a_dry_run_says_which_engine_would_be_replaced(bundle: Path) -> None:
    assert run_main(build, bundle, "--target", "a100").code == 0
    done = run_main(build, bundle, "--target", "a100", "--target", "rtx40", "--dry-run", "--json")
    assert done.json()["replaced"] == ["a100"]


def test_a_bundle_has_its_onnx_model_already(bundle: Path) -> None:
    before = bundles.listing(bundle)
    done = run_main(build, bundle, "--target", "none")
    assert done.code == 2
    assert "name a GPU" in done.err
    assert run_main(build, bundle, "--target", "orin", "--dry-run").code == 0
    assert bundles.listing(bundle) == before
