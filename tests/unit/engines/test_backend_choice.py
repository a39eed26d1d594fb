from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, get_args

import pytest

from gpusq_deploy.artifacts.receipt import SkippedTarget
from gpusq_deploy.engines import backend_choice
from gpusq_deploy.engines.api import TRAITS, BackendName, find_api, load_api, needed_names, rtx_compute_capability
from gpusq_deploy.engines.backend_choice import (
    BackendChoice,
    RuntimeChoice,
    choose_backend,
    choose_runtime,
    open_session,
)
from gpusq_deploy.engines.gpu import Gpu, NoGpu, find_gpu
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.errors import GpusqError

ModelMaker = Callable[..., Path]
ORIN = Gpu("Orin", "8.7")
BOTH = get_args(BackendName)


def fake_module(name: str, attributes: tuple[str, ...]) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    for attribute in attributes:
        setattr(module, attribute, object)
    return module


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which modules are installed, and which GPU answers."""

    def say(*names: str, gpu: Gpu | NoGpu) -> None:
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.setitem(sys.modules, name, fake_module(name, needed_names()) if name in names else None)
        monkeypatch.setattr(backend_choice, "find_gpu", lambda: gpu)
        monkeypatch.setattr(
            backend_choice, "find_cuda", lambda: "pycuda is not installed" if "no cuda" in names else object()
        )

    return say


def test_tensorrt_is_first_where_it_can_run(installed: Callable[..., None]) -> None:
    installed("tensorrt", "tensorrt_rtx", gpu=ORIN)
    assert choose_runtime("auto", engines=BOTH) == RuntimeChoice(
        name="tensorrt", reason="tensorrt is installed and a GPU answers"
    )


def test_rtx_is_second(installed: Callable[..., None]) -> None:
    installed("tensorrt_rtx", gpu=Gpu("RTX 4090", "8.9"))
    choice = choose_runtime("auto", engines=BOTH)
    assert choice.name == "tensorrt-rtx"
    assert choice.reason.startswith("not tensorrt: the package tensorrt is not installed; ")


def test_a_plan_runs_only_where_it_belongs(installed: Callable[..., None]) -> None:
    installed("tensorrt", "tensorrt_rtx", gpu=ORIN)
    choice = choose_runtime("auto", engines=["tensorrt-rtx"])
    assert choice.name == "tensorrt-rtx"
    assert choice.reason.startswith("not tensorrt: there are engines of tensorrt-rtx only; ")
    with pytest.raises(GpusqError, match="there are engines of tensorrt-rtx only"):
        choose_runtime("tensorrt", engines=["tensorrt-rtx"])


def test_the_cpu_is_last_and_every_refusal_is_told(installed: Callable[..., None]) -> None:
    installed("tensorrt_rtx", "tensorrt", gpu=NoGpu("the driver sleeps"))
    assert choose_runtime("auto", engines=BOTH) == RuntimeChoice(
        name="onnxruntime", reason="not tensorrt: the driver sleeps; not tensorrt-rtx: the driver sleeps"
    )


def test_a_package_that_calls_the_driver_is_needed(installed: Callable[..., None]) -> None:
    installed("tensorrt", "no cuda", gpu=ORIN)
    with pytest.raises(GpusqError, match="tensorrt can't run the model here: pycuda is not installed"):
        choose_runtime("tensorrt", engines=BOTH)


def test_without_a_plan_the_model_runs_on_the_cpu(installed: Callable[..., None]) -> None:
    installed("tensorrt", gpu=ORIN)
    assert choose_runtime("auto", engines=[]).name == "onnxruntime"
    with pytest.raises(GpusqError, match="no engine"):
        choose_runtime("tensorrt", engines=[])


def test_what_is_asked_for_is_taken(installed: Callable[..., None]) -> None:
    installed("tensorrt", gpu=ORIN)
    assert choose_runtime("onnxruntime", engines=BOTH) == RuntimeChoice(name="onnxruntime", reason="asked for")
    assert choose_runtime("tensorrt", engines=BOTH).name == "tensorrt"
    with pytest.raises(GpusqError, match="unknown runtime 'cuda'"):
        choose_runtime("cuda", engines=BOTH)


def test_orin_is_built_on_the_orin(installed: Callable[..., None]) -> None:
    orin = find_target("orin")
    installed("tensorrt", gpu=ORIN)
    assert choose_backend(orin, bundle="out") == BackendChoice(
        name="tensorrt", reason="tensorrt is installed, and the target's GPU answers"
    )
    installed("tensorrt", gpu=Gpu("A100", "8.0"))
    assert choose_backend(orin, bundle="out") == SkippedTarget(
        target="orin",
        reason="not tensorrt: it builds for orin only on the device itself (compute capability 8.7), and this is a "
        "A100 (8.0); no backend builds for orin ahead of time",
        command="gpusq-build out --target orin",
    )
    installed("tensorrt", gpu=NoGpu("no driver answers"))
    skipped = choose_backend(orin, bundle="out")
    assert isinstance(skipped, SkippedTarget)
    assert "only on the device itself, and here no driver answers" in skipped.reason


def test_rtx_builds_ahead_of_time(installed: Callable[..., None]) -> None:
    installed("tensorrt_rtx", gpu=NoGpu("no driver answers"))
    choice = choose_backend(find_target("a100"), bundle="out")
    assert isinstance(choice, BackendChoice)
    assert choice.name == "tensorrt-rtx"
    assert choice.reason.endswith("tensorrt-rtx builds ahead of time, without the GPU")


def test_an_empty_shell_of_a_module_is_seen_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", fake_module("tensorrt", ()))
    assert "empty shell" in str(find_api("tensorrt"))
    with pytest.raises(GpusqError, match="empty shell"):
        load_api("tensorrt")


def test_a_module_that_lacks_something_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(name for name in needed_names() if name != "IProgressMonitor")
    monkeypatch.setitem(sys.modules, "tensorrt", fake_module("tensorrt", names))
    assert find_api("tensorrt") == "the package tensorrt lacks IProgressMonitor; it is too old or too new"


def test_a_package_that_isnt_there_is_told() -> None:
    if "tensorrt" in sys.modules or not isinstance(find_api("tensorrt"), str):
        pytest.skip("tensorrt is installed here")
    assert find_api("tensorrt") == "the package tensorrt is not installed"


def test_the_real_rtx_module_has_all_that_is_needed() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx has wheels for Linux on x86-64 only", exc_type=ImportError)
    api = load_api("tensorrt-rtx")
    assert rtx_compute_capability(api, "12.0").name == "SM120"
    assert "STRONGLY_TYPED" in dir(api.NetworkDefinitionCreationFlag)
    assert "SPARSE_WEIGHTS" in dir(api.BuilderFlag)
    module: Any = api
    assert "EAGER" in module.DynamicShapesKernelSpecializationStrategy.__members__
    assert hasattr(module.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert hasattr(module.ICudaEngine, "create_runtime_config")
    assert "runtime_config: " in module.ICudaEngine.create_execution_context.__doc__


def test_traits_tell_the_twins_apart() -> None:
    assert TRAITS["tensorrt"].needs_gpu
    assert not TRAITS["tensorrt-rtx"].needs_gpu


def test_no_driver_is_a_reason() -> None:
    assert find_gpu("libno-such-driver.so.1") == NoGpu(
        "no NVIDIA driver is installed (libno-such-driver.so.1 can't be loaded)"
    )


class FakeDriver:
    """The driver's C interface, as ctypes shows it."""

    def __init__(self, *, start: int = 0, count: int = 1, describe: int = 0) -> None:
        self.start, self.count, self.describe = start, count, describe

    def cuInit(self, _flags: int) -> int:  # noqa: N802 - the driver's name
        return self.start

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802 - the driver's name
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, _device: Any, _number: int) -> int:  # noqa: N802 - the driver's name
        return 0

    def cuDeviceGetName(self, name: Any, _size: int, _device: Any) -> int:  # noqa: N802 - the driver's name
        name.value = b"Orin"
        return self.describe

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _device: Any) -> int:  # noqa: N802 - the driver's name
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0


@pytest.mark.parametrize(
    ("driver", "found"),
    [
        (FakeDriver(), ORIN),
        (FakeDriver(start=100), NoGpu("the NVIDIA driver refused to start (CUDA error 100)")),
        (FakeDriver(count=0), NoGpu("the NVIDIA driver finds no GPU")),
        (FakeDriver(describe=3), NoGpu("the NVIDIA driver doesn't describe its GPU (CUDA errors [0, 3, 0, 0])")),
    ],
)
def test_what_the_driver_says(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver, found: Gpu | NoGpu) -> None:
    def load(_name: str) -> FakeDriver:
        return driver

    monkeypatch.setattr("ctypes.CDLL", load)
    assert find_gpu() == found


def test_an_onnx_model_opens(make_model: ModelMaker) -> None:
    session = open_session(make_model("g (float[B] x) => (float[B] y) { y = Neg(x) }"), "onnxruntime")
    assert session.runtime == "onnxruntime"


def test_a_damaged_plan_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    plan = tmp_path / "a100.plan"
    with pytest.raises(GpusqError, match="cannot read the engine"):
        open_session(plan, "tensorrt-rtx")
    plan.write_bytes(b"")
    with pytest.raises(GpusqError, match="the file is empty"):
        open_session(plan, "tensorrt")
