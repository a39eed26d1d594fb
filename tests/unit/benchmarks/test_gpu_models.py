"""The GPU suite's models, on a device that is pretended: a session of ONNX Runtime that may err."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bundles
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from gpusq_deploy.artifacts.base import json_from_value, read_value
from gpusq_deploy.artifacts.receipt import BuiltEngine, EngineTotals, Receipt
from gpusq_deploy.benchmarks import gpu_models, gpu_runs
from gpusq_deploy.benchmarks.gpu_models import BATCHES, build_models, run_models, save_reference
from gpusq_deploy.benchmarks.gpu_results import ModelResult
from gpusq_deploy.benchmarks.gpu_runs import Suite
from gpusq_deploy.bundle import ENGINES, MODEL, RECEIPT
from gpusq_deploy.engines.gpu import Gpu
from gpusq_deploy.engines.runtimes import open_session
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.targets import find_target

ONLY = "DeiT-S INT8"


def suite(folder: Path, target: str = "a100") -> Suite:
    now = time.monotonic()
    return Suite(folder, find_target(target), ONLY, build_only=False, start=now, deadline=now + 60)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A tiny bundle under the name of DeiT-S, without an engine for a100 and without a reference."""
    path = tmp_path / "models" / "DeiT-S-INT8.gpusq"
    path.mkdir(parents=True)
    bundles.fill(path)
    return path


def engine(bundle: Path, backend: str) -> None:
    """Give it a plan for a100."""
    (bundle / ENGINES / "a100.plan").write_bytes(b"a plan")
    entry = BuiltEngine(
        target="a100",
        backend=backend,
        backend_version="1",
        source="",
        gpus="",
        compute_capability="8.0",
        plan_file="engines/a100.plan",
        plan_bytes=6,
        plan_digest="sha256:0",
        build_seconds=1.0,
        executed=False,
        totals=EngineTotals(kernels=0, gemms={}, attention_fused=0),
        layers=(),
        engine_layers=(),
    )
    receipt = msgspec.structs.replace(read_value(bundle / RECEIPT, Receipt), engines=(entry,))
    (bundle / RECEIPT).write_bytes(json_from_value(receipt))


class Device:
    """The bundle's model on ONNX Runtime; wrong from a batch size on."""

    def __init__(self, bundle: Path, wrong_from: int) -> None:
        self.session, self.wrong_from = open_session(bundle / MODEL, "onnxruntime"), wrong_from
        self.inputs, self.outputs = self.session.inputs, self.session.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        batch = len(next(iter(feeds.values())))
        found = self.session.run(feeds)
        return {name: y * 1.5 for name, y in found.items()} if batch >= self.wrong_from else dict(found)

    def timer(self, _feeds: Mapping[str, NDArray[Any]]) -> Callable[[], float]:
        return lambda: 0.5

    def close(self) -> None:
        self.session.close()


def pretend(monkeypatch: pytest.MonkeyPatch, bundle: Path, *installed: str, wrong_from: int = 1000) -> list[str]:
    """A machine with an A100 and these runtimes; returns what they open."""
    opened: list[str] = []

    def device(plan: Path, backend: str) -> Device:
        opened.append(f"{plan.name} {backend}")
        return Device(bundle, wrong_from)

    def why_not(backend: str) -> str | None:
        return None if backend in installed else "not installed"

    monkeypatch.setattr(gpu_runs, "why_not", why_not)
    monkeypatch.setattr(gpu_runs, "find_gpu", lambda: Gpu("A100", "8.0"))
    monkeypatch.setattr(gpu_runs, "torch_problem", lambda: "no torch")
    monkeypatch.setattr(gpu_models, "open_session", device)
    return opened


def of(backend: str, results: Iterable[ModelResult]) -> list[ModelResult]:
    return [result for result in results if result.backend == backend]


def test_every_batch_is_compared_before_it_is_timed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_reference(bundle)
    engine(bundle, "tensorrt-rtx")
    opened = pretend(monkeypatch, bundle, "tensorrt-rtx", wrong_from=32)
    found = list(run_models(suite(bundle.parents[1])))
    results = {result.batch: result for result in found if result.backend == "tensorrt-rtx"}
    assert sorted(results) == sorted(BATCHES)
    for batch, result in results.items():
        assert result.backend == "tensorrt-rtx"
        assert result.sqnr_db is not None
        if batch >= 32:
            assert "not timed, for it is wrong: 6.0 dB" in result.outcome.why_not
        else:
            assert len(result.outcome.samples_ms) == gpu_runs.ITERATIONS
    assert opened == ["a100.plan tensorrt-rtx"], "a plan is loaded once for all batch sizes"


def test_a_plan_that_cant_be_loaded_is_told_for_every_batch(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_reference(bundle)
    engine(bundle, "tensorrt-rtx")
    pretend(monkeypatch, bundle, "tensorrt-rtx")

    def refuse(*_words: Any) -> SimpleNamespace:
        raise GpusqError("built for another GPU")

    monkeypatch.setattr(gpu_models, "open_session", refuse)
    results = of("tensorrt-rtx", run_models(suite(bundle.parents[1])))
    assert [result.outcome.why_not for result in results] == ["failed: built for another GPU"] * len(BATCHES)


def test_a_device_that_fails_when_it_is_given_back_doesnt_end_the_suite(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_reference(bundle)
    engine(bundle, "tensorrt-rtx")
    pretend(monkeypatch, bundle, "tensorrt-rtx")

    def fail(_device: Device) -> None:
        raise GpusqError("CUDA failed: an illegal memory access")

    monkeypatch.setattr(Device, "close", fail)
    assert len(of("tensorrt-rtx", run_models(suite(bundle.parents[1])))) == len(BATCHES)
    assert "a100.plan: CUDA failed: an illegal memory access" in capsys.readouterr().err


def test_a_plan_is_run_by_who_built_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_reference(bundle)
    engine(bundle, "tensorrt")
    opened = pretend(monkeypatch, bundle, "tensorrt-rtx", "tensorrt")
    reasons = {(one.backend, one.outcome.why_not) for one in run_models(suite(bundle.parents[1]))}
    assert reasons == {("tensorrt-rtx", "its plan wasn't built: --build-only does"), ("tensorrt", "")}
    assert opened == ["a100.plan tensorrt"]


def test_whoever_can_build_here_gets_a_plan_and_a_failure_ends_nothing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the GPU itself the bundle's plan is TensorRT's; TensorRT-RTX's lies beside it."""
    engine(bundle, "tensorrt")
    pretend(monkeypatch, bundle, "tensorrt-rtx", "tensorrt")
    asked = suite(bundle.parents[1])

    def fail(*_words: Any) -> SimpleNamespace:
        raise GpusqError("no memory")

    monkeypatch.setattr(gpu_models, "build_engine", fail)
    build_models(asked)
    assert "DeiT-S-INT8 with tensorrt-rtx\n  failed: no memory" in capsys.readouterr().err

    def build(_model: Path, _target: Any, _settings: Any, options: Any) -> SimpleNamespace:
        return SimpleNamespace(plan=options.backend.encode())

    monkeypatch.setattr(gpu_models, "build_engine", build)
    build_models(asked)
    (own,) = bundle.parent.glob("*.a100.tensorrt-rtx*.plan")
    assert own.read_bytes() == b"tensorrt-rtx"
    assert {one.backend for one in run_models(asked) if one.outcome.samples_ms} == {"tensorrt-rtx", "tensorrt"}
    assert not list(bundle.parent.glob("*.h100.*"))


def test_where_both_run_both_are_measured(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_reference(bundle)
    engine(bundle, "tensorrt-rtx")
    opened = pretend(monkeypatch, bundle, "tensorrt-rtx", "tensorrt")

    def build(*_words: Any) -> SimpleNamespace:
        return SimpleNamespace(plan=b"here")

    monkeypatch.setattr(gpu_models, "build_engine", build)
    results = list(run_models(suite(bundle.parents[1])))
    assert [(one.backend, one.batch) for one in results if one.outcome.samples_ms] == [
        (backend, batch) for backend in ("tensorrt-rtx", "tensorrt") for batch in BATCHES
    ]
    list(run_models(suite(bundle.parents[1])))
    assert opened == ["a100.plan tensorrt-rtx", "DeiT-S-INT8.a100.tensorrt.plan tensorrt"] * 2, "it is built once"


def test_where_tensorrt_alone_runs_it_builds_the_models_on_the_spot(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_reference(bundle)
    engine(bundle, "tensorrt-rtx")
    opened = pretend(monkeypatch, bundle, "tensorrt")
    asked: list[Any] = []

    def build(*words: Any) -> SimpleNamespace:
        asked.append(words)
        return SimpleNamespace(plan=b"here")

    monkeypatch.setattr(gpu_models, "build_engine", build)
    results = of("tensorrt", run_models(suite(bundle.parents[1])))
    assert [result.outcome.why_not for result in results] == [""] * len(BATCHES)
    assert set(opened) == {"DeiT-S-INT8.a100.tensorrt.plan tensorrt"}
    ((model, _target, settings, options),) = asked
    assert (model, options.backend, settings.batch.maximum) == (bundle / MODEL, "tensorrt", max(BATCHES))

    def fail(*_words: Any) -> SimpleNamespace:
        raise GpusqError("no memory")

    monkeypatch.setattr(gpu_models, "build_engine", fail)
    bundle.with_suffix(".a100.tensorrt.plan").unlink()
    failed = of("tensorrt", run_models(suite(bundle.parents[1])))
    assert {result.outcome.why_not for result in failed} == {"building failed: no memory"}


def test_a_build_that_was_killed_before_the_reference_is_told_and_finished(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine(bundle, "tensorrt-rtx")
    asked = suite(bundle.parents[1])
    with monkeypatch.context() as device:
        pretend(device, bundle, "tensorrt-rtx")
        reasons = {result.outcome.why_not for result in of("tensorrt-rtx", run_models(asked))}
        assert reasons == {"its reference wasn't built: --build-only does"}
    build_models(asked)
    with np.load(bundle.with_suffix(".npz")) as stored:
        assert stored["y"].shape == (gpu_models.REFERENCE_SAMPLES, 4)
    bundle.with_suffix(".npz").write_bytes(b"PK cut short")
    pretend(monkeypatch, bundle, "tensorrt-rtx")
    found = of("tensorrt-rtx", run_models(asked))
    assert {result.outcome.why_not for result in found} == {"failed: its reference can't be read"}


def test_a_target_that_only_tensorrt_builds_for_says_what_tensorrt_lacks(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, bundle)
    results = list(run_models(suite(bundle.parents[1], "h100")))
    assert {(result.backend, result.outcome.why_not) for result in results} == {
        ("tensorrt-rtx", "tensorrt-rtx can't run plans here: not installed"),
        ("tensorrt", "tensorrt can't run plans here: not installed"),
    }
