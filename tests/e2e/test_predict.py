"""gpusq-inspect --predict: times of a bundle on GPUs that aren't here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from gpusq_deploy.artifacts.base import json_from_value, read_value
from gpusq_deploy.artifacts.bundle_layout import RECEIPT
from gpusq_deploy.artifacts.receipt import Receipt
from gpusq_deploy.artifacts.runs import Environment, MeasureSettings, Runs, RuntimeInfo, Series
from gpusq_deploy.cli.inspect import main as inspect

from commands import run_main  # isort: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx compiles the layer lists"
    ),
]


def _times(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    (device,) = found["devices"]
    return {time["variant"]: time for time in device["times"]}


def _runs(path: Path, digest: str, milliseconds: float, *, gpu: str | None = "NVIDIA L4") -> Path:
    runs = Runs(
        created="2026-01-01T00:00:00+00:00",
        model="sparse.gpusq",
        model_digest=digest,
        runtime=RuntimeInfo(name="tensorrt", version="10.3", device="cuda:0", reason="asked for"),
        environment=Environment(
            cpu="", cores=1, cpu_quota=None, os="", python="", gpu=gpu, gpu_driver=None, clocks_locked=None
        ),
        settings=MeasureSettings(warmup=0, iterations=1, repeats=1),
        series=(Series(batch=8, repeat=0, warmup=0, samples_ms=(milliseconds,)),),
    )
    path.write_bytes(json_from_value(runs))
    return path


def test_three_forms_with_intervals_and_the_kernels_that_the_build_counted(bundle: Path) -> None:
    done = run_main(inspect, bundle, "--predict", "--device", "l4", "--json")
    assert done.code == 0, done.err
    times, cost = _times(done.json()), read_value(bundle / RECEIPT, Receipt).cost
    assert cost is not None
    assert cost.built is not None
    assert cost.unquantised is not None
    assert list(times) == ["fp16", "int8", "2:4"]
    assert all(time["low"] < time["milliseconds"] < time["high"] for time in times.values())
    assert times["2:4"]["milliseconds"] < times["int8"]["milliseconds"]
    assert (times["int8"]["kernels"], times["fp16"]["kernels"]) == (cost.built.kernels, cost.unquantised.kernels)
    assert done.json()["batch"] == cost.built.batch


def test_the_table_says_that_it_is_a_prediction_and_how_far_off(bundle: Path) -> None:
    done = run_main(inspect, bundle, "--predict", "--batch", "1")
    assert done.code == 0, done.err
    for device in ("a100", "agx-orin", "h100", "h200", "l4", "rtx4090", "rtx5090"):
        assert device in done.out
    assert "predicted, not measured" in done.out
    assert "median error" in done.out


def test_a_run_corrects_what_it_was_of(bundle: Path, tmp_path: Path) -> None:
    """Half of what was predicted, measured: the same form at the same batch takes that, and says by which run."""
    receipt = read_value(bundle / RECEIPT, Receipt)
    plain = run_main(inspect, bundle, "--predict", "--device", "l4", "--json").json()
    half = _times(plain)["int8"]["milliseconds"] / 2
    runs = _runs(tmp_path / "runs.json", receipt.engines[0].engine_digest, half)
    done = run_main(inspect, bundle, "--predict", "--device", "l4", "--calibrate", runs, "--json")
    assert done.code == 0, done.err
    assert _times(done.json())["int8"]["milliseconds"] == pytest.approx(half)
    assert "NVIDIA L4" in done.json()["devices"][0]["calibration"]


def test_what_cannot_be_answered_is_refused_in_a_sentence(bundle: Path, tmp_path: Path) -> None:
    receipt = read_value(bundle / RECEIPT, Receipt)
    other = _runs(tmp_path / "other.json", "sha256:0", 1.0)
    cpu = _runs(tmp_path / "cpu.json", receipt.model_digest, 1.0, gpu=None)
    for arguments, code, said in (
        (("--device", "l40"), 5, "unknown device"),
        (("--device", "l4@fast"), 5, "clock"),
        (("--calibrate", other), 5, "--device"),
        (("--device", "l4", "--calibrate", other), 5, "another model"),
        (("--device", "l4", "--calibrate", cpu), 5, "without a GPU"),
        (("--layer", "head"), 2, "--layer"),
    ):
        done = run_main(inspect, bundle, "--predict", *arguments)
        assert (done.code, said in done.err) == (code, True), done.err
    done = run_main(inspect, bundle, "--device", "l4")
    assert (done.code, "--predict" in done.err) == (2, True)


def test_an_onnx_model_alone_is_enough(bundle: Path) -> None:
    done = run_main(inspect, bundle / "model.onnx", "--predict", "--device", "a100", "--batch", "2", "--json")
    assert done.code == 0, done.err
    assert list(_times(done.json())) == ["fp16", "int8", "2:4"]
