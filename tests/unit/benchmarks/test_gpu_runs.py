"""What the GPU suite is asked, and where it has nothing but tensorrt: GPUs and builders are pretended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpusq_deploy.benchmarks import gpu_runs, gpu_suite
from gpusq_deploy.benchmarks.gemm_cases import GemmCase, all_cases, expected_rows
from gpusq_deploy.benchmarks.gpu_results import Outcome
from gpusq_deploy.benchmarks.gpu_runs import Suite, target_here
from gpusq_deploy.benchmarks.gpu_suite import main, run_cases
from gpusq_deploy.benchmarks.gpu_yardstick import Kernels, kernels_among
from gpusq_deploy.engines.gpu import Gpu, NoGpu
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.targets import find_target

CASE = "ViT-S proj b1 2:4 int8-plain"


@pytest.mark.parametrize(
    ("name", "capability", "target"),
    [
        ("NVIDIA L4", "8.9", "l4"),
        ("NVIDIA L40S", "8.9", "l40s"),
        ("NVIDIA L40", "8.9", "l40s"),
        ("NVIDIA GeForce RTX 4090", "8.9", "rtx40"),
        ("NVIDIA GeForce RTX 4070 Laptop GPU", "8.9", "rtx40"),
        ("NVIDIA RTX 6000 Ada Generation", "8.9", "rtx40"),
        # One target alone has this: its name needn't tell.
        ("NVIDIA Graphics Device", "9.0", "h100"),
        # None of ours.
        ("Tesla T4", "7.5", "a100"),
    ],
)
def test_the_gpus_name_tells_targets_of_one_capability_apart(
    name: str, capability: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_runs, "find_gpu", lambda: Gpu(name, capability))
    assert target_here().name == target


def test_a_gpu_that_could_be_several_targets_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_runs, "find_gpu", lambda: Gpu("NVIDIA Graphics Device", "8.9"))
    with pytest.raises(GpusqError, match="could be any of several targets") as caught:
        target_here()
    assert caught.value.hint == "--target: one of l4, l40s, rtx40"
    monkeypatch.setattr(gpu_runs, "find_gpu", lambda: NoGpu("none"))
    assert target_here().name == "a100"


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--folder", str(folder), "--only", CASE, *words])
    main()


def test_an_unknown_target_is_a_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, tmp_path / "out", "--target", "nope")
    assert ended.value.code == 5
    assert capsys.readouterr().err.startswith("error: unknown target 'nope'")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command(monkeypatch, tmp_path / "file", "--target", "a100")
    assert "cannot make the folder" in capsys.readouterr().err


def test_a_target_without_plans_ahead_of_time_says_who_builds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, tmp_path, "--target", "h100", "--build-only")
    assert "builds no plan for h100 ahead of time, tensorrt does on the device" in capsys.readouterr().err
    on_h100(monkeypatch, "tensorrt-rtx", "tensorrt")
    monkeypatch.setattr(gpu_suite, "build_engine", failing)
    reasons = {result.backend: result.outcome.why_not for result in run_cases(h100(tmp_path))}
    assert reasons == {
        "tensorrt-rtx": "tensorrt-rtx builds no plan for h100 ahead of time",
        "tensorrt": "building failed: no memory",
    }


def test_tensorrt_alone_builds_and_runs_without_anything_built_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_h100(monkeypatch, "tensorrt")
    monkeypatch.setattr(gpu_suite, "build_engine", built)
    monkeypatch.setattr(gpu_suite, "open_session", Device)
    (result,) = (result for result in run_cases(h100(tmp_path)) if result.backend == "tensorrt")
    assert (result.version, result.outcome.why_not, len(result.outcome.samples_ms)) == ("10", "", gpu_runs.ITERATIONS)


def on_h100(monkeypatch: pytest.MonkeyPatch, *installed: str) -> None:
    def why_not(backend: str) -> str | None:
        return None if backend in installed else "not installed"

    monkeypatch.setattr(gpu_runs, "find_gpu", lambda: Gpu("H100", "9.0"))
    monkeypatch.setattr(gpu_runs, "why_not", why_not)
    monkeypatch.setattr(gpu_runs, "torch_problem", lambda: "no torch")


def h100(folder: Path) -> Suite:
    now = time.monotonic()
    return Suite(folder, find_target("h100"), CASE, build_only=False, start=now, deadline=now + 60)


def failing(*_asked: Any) -> SimpleNamespace:
    raise GpusqError("no memory")


def built(*_asked: Any) -> SimpleNamespace:
    return SimpleNamespace(plan=b"a plan", version="10", layers=())


class Device:
    """A session that computes the case as it should be."""

    def __init__(self, _plan: Path, _backend: str) -> None:
        self.case: GemmCase = next(case for case in all_cases() if case.name == CASE)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"y": np.clip(np.rint(expected_rows(self.case, feeds["x"])), -128, 127)}

    def timer(self, _feeds: Mapping[str, NDArray[Any]]) -> Callable[[], float]:
        return lambda: 0.5

    def close(self) -> None:
        pass


def test_copies_are_no_kernels() -> None:
    names = ("Memcpy HtoD (Pageable -> Device)", "sm80_xmma_gemm", "Memset (Device)", "Memcpy DtoH (Device -> Pinned)")
    events = [event(name, "DeviceType.CUDA") for name in names]
    events.append(event("cudaLaunchKernel", "DeviceType.CPU"))
    assert kernels_among(events) == Kernels(names=("sm80_xmma_gemm",), microseconds=(7.5,))


def event(name: str, device: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: 7.5))


@pytest.mark.parametrize("error", [GpusqError("no kernels"), RuntimeError("CUPTI is busy")])
def test_samples_are_kept_where_no_profiler_can_look(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_run: object) -> Kernels:
        raise error

    monkeypatch.setattr(gpu_runs, "torch_problem", lambda: "")
    monkeypatch.setattr(gpu_runs, "kernels_of", fail)
    session: Any = Device(Path(), "")
    found = gpu_runs.measured(session, {}, error=None)
    assert (len(found.samples_ms), found.kernels, found.kernels_us) == (gpu_runs.ITERATIONS, (), ())
    assert (
        f"no kernels are seen: {'' if isinstance(error, GpusqError) else 'RuntimeError: '}{error}"
        in capsys.readouterr().err
    )


def test_a_mistake_of_our_own_is_a_line_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> Outcome:
        raise KeyError("x")

    assert gpu_runs.outcome_of(fail).why_not == "failed: KeyError: 'x'"
    assert "Traceback" in capsys.readouterr().err
