"""What gpusq-doctor says is what was tried."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from commands import run_main

from gpusq_deploy import engines
from gpusq_deploy.cli.doctor import main as doctor
from gpusq_deploy.engines import health
from gpusq_deploy.engines.gpu import Gpu, find_gpu
from gpusq_deploy.engines.health import HealthCheck
from gpusq_deploy.engines.targets import load_targets

RTX = importlib.util.find_spec("tensorrt_rtx") is not None


@pytest.mark.slow
def test_it_says_what_this_machine_can() -> None:
    done = run_main(doctor, "--json")
    told = done.json()
    build = {entry["what"]: entry for entry in told["build"]}
    assert build["a bundle from a checkpoint"]["works"]
    for target in load_targets():
        if target.ahead_of_time:
            assert build[f"an engine for {target.name}"]["works"] == RTX
    run = {entry["what"]: entry for entry in told["run"]}
    assert run["model.onnx on the CPU"]["works"]
    assert run["a GPU"]["works"] == isinstance(find_gpu(), Gpu)
    assert told["measure"][0] == {**told["measure"][0], "what": "latency on the CPU", "works": True}
    for entry in (*told["build"], *told["run"], *told["measure"]):
        assert entry["why"]
    assert done.code == 0
    text = run_main(doctor)
    assert text.code == 0
    assert all(entry["what"] in text.out for entry in told["build"])


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where nothing works, and each check says why."""

    def absent(backend: str) -> HealthCheck:
        return HealthCheck(name=backend, works=False, said=f"{backend} is not installed")

    def crashed() -> HealthCheck:
        return HealthCheck(name="it", works=False, said="crashed with signal 11")

    def no_api(backend: str) -> str:
        return f"the package {backend} is not installed"

    for name in ("check_builder", "check_engines"):
        monkeypatch.setattr(engines, name, absent)
    for name in ("check_gpu", "check_onnxruntime", "check_nvidia_smi"):
        monkeypatch.setattr(engines, name, crashed)
    monkeypatch.setattr("gpusq_deploy.engines.backend_choice.find_api", no_api)


@pytest.mark.usefixtures("bare")
def test_what_is_missing_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run_main(doctor, "--json")
    assert done.code == 0  # a checkpoint still becomes a bundle
    fixes = {entry["what"]: entry["fix"] for part in ("build", "run") for entry in done.json()[part]}
    assert fixes["tensorrt"] == "pip install 'gpusq-deploy[tensorrt]'"
    assert fixes["an engine for orin"] == "on the device: gpusq-build BUNDLE --target orin"
    assert "tensorrt-rtx" in fixes["an engine for a100"]
    find = importlib.util.find_spec

    def without_torch(name: str) -> ModuleSpec | None:
        return None if name == "torch" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    done = run_main(doctor, "--json")
    assert done.code == 6
    assert done.json()["build"][0]["fix"] == "pip install torch"


def test_a_check_that_crashes_or_cant_start_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_ORT", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert health.check_onnxruntime() == HealthCheck(name="ONNX Runtime", works=False, said="crashed with signal 11")
    monkeypatch.setattr(health, "_ORT", "import time; time.sleep(60)")
    monkeypatch.setattr(health, "_SECONDS", 0.5)
    assert health.check_onnxruntime().said == "no answer within 0.5 seconds"
    monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
    assert "No such file" in health.check_onnxruntime().said
