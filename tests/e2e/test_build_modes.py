"""A build that stops before engines, one that stops before calibration, and what every build says first."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import onnx
import pytest
from commands import Finished, run_main

from gpusq_deploy.bundle.files import read_bundle
from gpusq_deploy.cli.bench import main as bench
from gpusq_deploy.cli.build import main as build
from gpusq_deploy.cli.inspect import main as inspect
from gpusq_deploy.cli.validate import main as validate
from gpusq_deploy.graph.passes.registry import PIPELINES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def without(sparse: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """The sparse model as an ONNX model alone, and what the quiet command printed."""
    out = tmp_path_factory.mktemp("bundles") / "m.gpusq"
    options = ("--int8", "--sparse", "--calib", photos, "--target", "none", "--quiet", "--out", out)
    return out, run_main(build, sparse, *options)


def test_no_engine_is_built_where_none_is_wanted(without: tuple[Path, Finished]) -> None:
    bundle, done = without
    assert (done.code, done.err) == (0, "")
    found = read_bundle(bundle)
    assert (found.receipt.engines, found.receipt.skipped) == ((), ())
    assert found.manifest.options.targets == ()
    assert not (bundle / "engines").exists()
    assert {layer.precision for layer in found.plan.layers} == {"int8"}


def test_a_bundle_without_an_engine_can_be_validated_inspected_and_measured(without: tuple[Path, Finished]) -> None:
    bundle, _ = without
    assert run_main(validate, bundle).code == 0
    shown = run_main(inspect, bundle)
    assert shown.code == 0
    assert "none was asked for (--target none)" in shown.out
    one = run_main(inspect, bundle, "--layer", "blocks.1.mlp")
    assert one.code == 0
    for layer in read_bundle(bundle).plan.layers:
        assert layer.layer in shown.out
        assert (f"{layer.layer}, as planned" in one.out) == layer.layer.startswith("blocks.1.mlp")
    assert run_main(inspect, bundle, "--json").json()["receipt"]["engines"] == []
    done = run_main(bench, bundle, "--batch", "1", "--repeats", "1", "--iterations", "2", "--warmup", "0", "--json")
    assert done.json()["runtime"]["name"] == "onnxruntime"


def test_a_build_begins_with_size_accuracy_and_engine(without: tuple[Path, Finished], bundle: Path) -> None:
    for path, printed in ((without[0], without[1].out), (bundle, run_main(build, bundle, "--target", "a100").out)):
        lines = printed.splitlines()
        assert [line.split()[0] for line in lines[1:4]] == ["size", "accuracy", "engine"]
        found = read_bundle(path)
        assert found.receipt.verification is not None
        size = sum(
            file.stat().st_size for file in path.iterdir() if file.suffix not in {".json", ".html"} and file.is_file()
        )
        assert f"model.onnx {size / 1e3:.0f} kB" in lines[1]
        assert f"SQNR {found.receipt.verification.sqnr_db:.0f} dB" in lines[2]
        for engine in found.receipt.engines:
            count = sum(layer.precision == "int8" for layer in engine.layers)
            assert f"{engine.target}: {count} of {len(engine.layers)} layers INT8" in lines[3]


def test_the_graph_after_each_pass_is_written(sparse: Path, photos: Path, tmp_path: Path) -> None:
    dump, out = tmp_path / "passes", tmp_path / "m.gpusq"
    options = ("--int8", "--sparse", "--calib", photos, "--target", "none", "--rewrites", "all", "--out", out)
    assert "writes nothing" in run_main(build, sparse, *options, "--dump-passes", dump, "--dry-run").err
    done = run_main(build, sparse, *options, "--dump-passes", dump)
    assert done.code == 0, done.err
    passes = json.loads((dump / "passes.json").read_bytes())["passes"]
    names = [entry["name"] for entry in passes]
    assert names == [*PIPELINES["simple"], *PIPELINES["faster"], "smooth", "quantize", "keep-fp32", "cast"]
    assert [entry["file"] for entry in passes] == sorted(path.name for path in dump.glob("*.onnx"))
    for before, after in itertools.pairwise(passes):
        assert after["before"] == before["after"]
    smoothed = next(entry["changes"] for entry in passes if entry["name"] == "smooth")
    assert f"smoothed {smoothed} activations" in done.err
    built = onnx.load(out / "model.onnx").graph.node
    assert Counter(node.op_type for node in built) == passes[-1]["after"]
    for entry in passes:
        nodes = onnx.load(dump / entry["file"], load_external_data=False).graph.node
        assert Counter(node.op_type for node in nodes) == entry["after"]
    assert "isn't empty" in run_main(build, sparse, *options, "--force", "--dump-passes", dump).err


def test_a_dry_run_says_what_the_build_then_does(sparse: Path, photos: Path, tmp_path: Path, bundle: Path) -> None:
    out = tmp_path / "m.gpusq"
    options = ("--int8", "--sparse", "--calib", photos, "--target", "a100", "--target", "orin", "--out", out)
    done = run_main(build, sparse, *options, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert list(tmp_path.iterdir()) == []
    told, found = done.json(), read_bundle(bundle)
    assert [
        (entry["layer"], entry["n"], entry["k"], entry["precision"], entry["sparse"]) for entry in told["layers"]
    ] == [(layer.layer, layer.n, layer.k, layer.precision, layer.sparse) for layer in found.plan.layers]
    assert found.calibration is not None
    assert told["calibration_samples"] == found.calibration.images
    assert [entry["backend"] for entry in told["engines"]] == ["tensorrt-rtx", None]
    shown = run_main(build, sparse, *options, "--dry-run").out
    assert all(layer.layer in shown for layer in found.plan.layers)


def test_a_dry_run_stops_where_the_build_would(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gpusq"
    done = run_main(build, dense, "--int8", "--sparse", "--calib", "random", "--dry-run", "--out", out)
    assert done.code == 5
    assert "--prune second-order" in done.err
    assert run_main(build, dense, "--int8", "--dry-run", "--out", out).code == 5
    assert list(tmp_path.iterdir()) == []


def test_no_target_stands_beside_another(dense: Path, tmp_path: Path) -> None:
    done = run_main(build, dense, "--target", "none", "--target", "a100", "--out", tmp_path / "m.gpusq")
    assert done.code == 2
    assert list(tmp_path.iterdir()) == []
