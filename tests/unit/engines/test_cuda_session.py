"""The session's own logic, with a pretended TensorRT and a pretended device that doubles its input.

The packages that call the driver have their own test: test_cuda_drivers."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from gpusq_deploy.engines.api import Api, BackendName
from gpusq_deploy.engines.cuda_graph import CudaGraph, GraphDriver, find_graph_driver
from gpusq_deploy.engines.cuda_session import CudaParts, CudaSession
from gpusq_deploy.engines.engine_file import check_engine_header
from gpusq_deploy.engines.engine_io import ShapeRange, buffer_bytes, check_ranges, dtype_from_trt, numpy_dtype
from gpusq_deploy.engines.session import TensorSpec
from gpusq_deploy.errors import GpusqError

Named = types.SimpleNamespace


class CudaError(Exception):
    pass


class Driver:
    """A `CudaDevice` that counts what it is asked. Its memory is found by address."""

    Error: type[Exception] = CudaError
    api: str = "pretended 1"
    name: str = "Pretended GPU"
    stream: int = 7
    memories: dict[int, NDArray[np.uint8]] = {}  # noqa: RUF012 - the whole pretended device

    def __init__(self) -> None:
        self.pushed = 0
        self.closed = 0
        self.taken: list[int] = []
        self.given_back: list[str] = []

    def push(self) -> None:
        self.pushed += 1

    def pop(self) -> None:
        self.pushed -= 1

    def synchronize(self) -> None:
        assert self.pushed

    def time(self, enqueue: Callable[[], None]) -> float:
        enqueue()
        return 0.25

    def memory(self, size: int) -> int:
        assert self.pushed
        self.taken.append(1000 + len(Driver.memories))
        Driver.memories[self.taken[-1]] = np.zeros(size, np.uint8)
        return self.taken[-1]

    def free(self, address: int) -> None:
        self.taken.remove(address)
        self.given_back.append("memory")

    def pinned(self, size: int) -> NDArray[np.uint8]:
        return np.zeros(size, np.uint8)

    def unpin(self, array: NDArray[np.uint8]) -> None:
        assert self.pushed
        self.given_back.append("pinned")

    def upload(self, address: int, source: NDArray[np.uint8]) -> None:
        Driver.memories[address][:] = source

    def download(self, target: NDArray[np.uint8], address: int) -> None:
        target[:] = Driver.memories[address]

    def close(self) -> None:
        self.closed += 1


class Execution:
    """An execution context of the model y = 2 x, float16 [B, 4], for batches 1 to 8."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.works = True
        self.profiles: list[int] = []
        self.launches = 0
        self.is_stream_capturable: Callable[[int], bool] | None = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == 7
        self.profiles.append(index)
        return index < 2

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "x"
        self.shape = shape
        return True

    def get_tensor_shape(self, _name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        self.launches += 1
        x, y = (Driver.memories[self.addresses[name]] for name in ("x", "y"))
        y.view(np.float16)[:] = 2 * x.view(np.float16)
        return self.works


class Engine:
    num_io_tensors = 2
    refittable = True
    host_code_allowed: bool | None = None
    refuses_config = False
    config: Any = None

    def __init__(self, *profiles: tuple[int, int, int], streamable: int = 0) -> None:
        self.execution = Execution()
        self.batches = profiles or ((1, 4, 8),)
        self.num_optimization_profiles = len(self.batches)
        self.streamable_weights_size = streamable
        self.weight_streaming_budget_v2 = -1

    def get_weight_streaming_automatic_budget(self) -> int:
        return 1234

    def create_execution_context(self, config: Any = None) -> Execution:
        self.config = config
        return self.execution

    def create_runtime_config(self) -> Any:
        return None if self.refuses_config else Named(dynamic_shapes_kernel_specialization_strategy="lazy")

    def get_tensor_name(self, index: int) -> str:
        return "yx"[index]

    def get_tensor_mode(self, name: str) -> Any:
        return Named(name="INPUT" if name == "x" else "OUTPUT")

    def get_tensor_dtype(self, _name: str) -> Any:
        return Named(name="HALF")

    def get_tensor_shape(self, _name: str) -> tuple[int, int]:
        return (-1, 4)

    def get_tensor_profile_shape(self, _name: str, profile: int) -> list[tuple[int, int]]:
        return [(batch, 4) for batch in self.batches[profile]]


class Logger:
    def log(self, severity: Any, text: str) -> None:
        """Replaced by the session's own."""


Opened = tuple[CudaSession, Driver, Engine]


@pytest.fixture
def opened() -> Opened:
    driver, engine = Driver(), Engine()
    return _open(driver, engine), driver, engine


def _open(
    driver: Driver,
    engine: Engine | None,
    said: str = "",
    *,
    weights: Path | None = None,
    graphs: GraphDriver | None = None,
    modules: Mapping[str, object] | None = None,
    backend: BackendName = "tensorrt",
    host_code: bool = False,
    misfits: tuple[str, ...] = (),
    others: Sequence[Driver] = (),
) -> CudaSession:
    class Runtime:
        def __init__(self, logger: Logger) -> None:
            self.logger = logger
            self.engine_host_code_allowed: bool | None = None

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            assert plan == b"plan"
            if engine is not None:
                engine.host_code_allowed = self.engine_host_code_allowed
            if said:
                self.logger.log(Named(name="ERROR"), said)
            return engine

    api = cast("Api", Named(__version__="10.3", ILogger=Logger, Runtime=Runtime, **(modules or {})))
    return CudaSession(
        CudaParts(
            engine_bytes=b"plan",
            api=api,
            cuda=driver,
            backend=backend,
            path=Path("orin.plan"),
            weights=weights,
            graphs=graphs,
            host_code=host_code,
            misfits=misfits,
            open_another=iter(others).__next__,
        )
    )


def feeds(batch: int) -> dict[str, NDArray[Any]]:
    return {"x": np.arange(batch * 4, dtype=np.float16).reshape(batch, 4)}


def test_another_session_runs_the_same_engine_with_a_device_of_its_own() -> None:
    first, second = Driver(), Driver()
    engine = Engine()
    session = _open(first, engine, others=[second])
    engine.execution = Execution()
    other = session.another()
    assert other.run(feeds(2))["y"].tolist() == (2 * feeds(2)["x"]).tolist()
    assert (first.taken, len(second.taken)) == ([], 2), "buffers are of the other's own"
    other.close()
    assert (first.closed, second.closed, second.taken) == (0, 1, [])
    assert session.run(feeds(1))["y"].tolist() == (2 * feeds(1)["x"]).tolist()
    session.close()
    assert (first.closed, second.closed) == (1, 1)


def test_inputs_and_outputs_are_told_apart(opened: Opened) -> None:
    session = opened[0]
    assert session.inputs == (TensorSpec(name="x", shape=(-1, 4), dtype="float16"),)
    assert session.outputs == (TensorSpec(name="y", shape=(-1, 4), dtype="float16"),)
    assert (session.runtime, session.runtime_version, session.device) == ("tensorrt", "10.3", "Pretended GPU")
    assert session.cuda_api == "pretended 1"


def test_a_run_goes_through_the_device(opened: Opened) -> None:
    session, driver, _ = opened
    for batch in (1, 8, 3):
        found = session.run(feeds(batch))["y"]
        np.testing.assert_array_equal(found, 2 * feeds(batch)["x"])
    assert driver.pushed == 0


def test_a_plan_for_another_gpu_is_the_runtimes_to_refuse() -> None:
    misfits = ("it was built for compute capability 8.0, and this GPU has 9.0",)
    session = _open(Driver(), Engine(), misfits=misfits)
    np.testing.assert_array_equal(session.run(feeds(1))["y"], 2 * feeds(1)["x"])
    with pytest.raises(GpusqError, match=r"couldn't read the engine: no kernel image; it was built for .* 8\.0"):
        _open(Driver(), None, "no kernel image", misfits=misfits)


def test_buffers_are_reused_per_shape(opened: Opened) -> None:
    session, driver, _ = opened
    first = session.run(feeds(2))["y"]
    session.run(feeds(5))
    session.run({"x": np.zeros((2, 4), np.float16)})
    assert len(driver.taken) == 4
    np.testing.assert_array_equal(first, 2 * feeds(2)["x"], "the caller owns what it got")


def test_events_time_an_inference(opened: Opened) -> None:
    assert opened[0].timer(feeds(2))() == 0.25


def test_a_batch_outside_the_profile_is_refused(opened: Opened) -> None:
    with pytest.raises(GpusqError, match=r"'x' \[9, 4\] is outside \[1, 4\] to \[8, 4\]"):
        opened[0].run(feeds(9))


def test_each_batch_takes_a_profile_that_allows_it() -> None:
    engine = Engine((1, 1, 1), (4, 8, 32))
    session = _open(Driver(), engine)
    for batch in (1, 4, 32, 1):
        np.testing.assert_array_equal(session.run(feeds(batch))["y"], 2 * feeds(batch)["x"])
    assert engine.execution.profiles == [1, 0]
    with pytest.raises(
        GpusqError, match=r"none of the engine's 2 profiles allows 'x' \[2, 4\]: .*\[4, 4\] to \[32, 4\]"
    ):
        session.run(feeds(2))


def test_of_several_profiles_the_one_is_taken_that_is_tuned_for_the_nearest_batch() -> None:
    engine = Engine((1, 8, 32), (1, 32, 32))
    session = _open(Driver(), engine)
    for batch in (8, 32, 31, 20, 1):
        np.testing.assert_array_equal(session.run(feeds(batch))["y"], 2 * feeds(batch)["x"])
    # 20 is as far from 8 as from 32: the first.
    assert engine.execution.profiles == [1, 0]


def test_a_profile_that_is_refused_is_told() -> None:
    session = _open(Driver(), Engine((1, 1, 1), (2, 2, 2), (3, 3, 3)))
    with pytest.raises(GpusqError, match="couldn't change to its optimisation profile 2"):
        session.run(feeds(3))


@pytest.mark.parametrize("allowed", [True, False])
def test_a_plan_with_a_runtime_of_its_own_is_loaded_only_where_that_is_allowed(allowed: bool) -> None:
    driver, engine = Driver(), Engine()
    if allowed:
        _open(driver, engine, host_code=True)
        assert engine.host_code_allowed is True
    else:
        _open(driver, engine)
        assert engine.host_code_allowed is False


@pytest.mark.parametrize(("streamable", "budget"), [(0, -1), (10, 1234)])
def test_a_plan_that_streams_gets_a_budget(streamable: int, budget: int) -> None:
    engine = Engine(streamable=streamable)
    _open(Driver(), engine)
    assert engine.weight_streaming_budget_v2 == budget


RTX = {"DynamicShapesKernelSpecializationStrategy": Named(EAGER="eager")}


def test_rtx_waits_for_the_kernels_of_a_shape_and_tensorrt_has_no_such_wish() -> None:
    engine, plain = Engine(), Engine()
    _open(Driver(), engine, modules=RTX, backend="tensorrt-rtx")
    _open(Driver(), plain)
    assert engine.config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert plain.config is None


def test_a_runtime_without_a_configuration_is_told() -> None:
    driver, engine = Driver(), Engine()
    engine.refuses_config = True
    with pytest.raises(GpusqError, match="gives no configuration for running"):
        _open(driver, engine, modules=RTX, backend="tensorrt-rtx")
    assert (driver.pushed, driver.closed) == (0, 1)


def test_a_device_that_fails_while_it_is_freed_is_given_back_all_the_same(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, driver, _ = opened

    def fail(_address: int) -> None:
        raise CudaError("an illegal memory access")

    monkeypatch.setattr(driver, "free", fail)
    session.run(feeds(1))
    with pytest.raises(GpusqError, match="CUDA failed: an illegal memory access"):
        session.close()
    assert (driver.pushed, driver.closed) == (0, 1)
    session.close()
    assert driver.closed == 1


class Refitting:
    """TensorRT's two refitters in one."""

    def __init__(self, *, fits: bool = True, missing: tuple[str, ...] = (), accepted: bool = True) -> None:
        self.fits, self.missing, self.accepted = fits, missing, accepted
        self.read: list[str] = []
        self.num_errors = 1

    def modules(self) -> dict[str, object]:
        def refitter(_engine: object, _logger: object) -> Refitting:
            return self

        return {"Refitter": refitter, "OnnxParserRefitter": refitter}

    def refit_from_file(self, path: str) -> bool:
        self.read.append(path)
        return self.fits

    def get_error(self, _index: int) -> Any:
        return Named(desc=lambda: "wrong shape")

    def get_missing_weights(self) -> list[str]:
        return list(self.missing)

    def refit_cuda_engine(self) -> bool:
        return self.accepted


def test_a_plan_without_weights_takes_the_models() -> None:
    refitting = Refitting()
    session = _open(Driver(), Engine(), weights=Path("model.onnx"), modules=refitting.modules())
    assert refitting.read == ["model.onnx"]
    np.testing.assert_array_equal(session.run(feeds(1))["y"], 2 * feeds(1)["x"])


@pytest.mark.parametrize(
    ("refitting", "match"),
    [
        (Refitting(fits=False), "don't fit the engine: wrong shape"),
        (Refitting(missing=("fc_weight_int8",)), "lacks 1 weights of the engine: fc_weight_int8"),
        (Refitting(accepted=False), "refused the model's weights"),
    ],
)
def test_weights_that_dont_fit_are_told(refitting: Refitting, match: str) -> None:
    driver = Driver()
    with pytest.raises(GpusqError, match=match):
        _open(driver, Engine(), weights=Path("model.onnx"), modules=refitting.modules())
    assert (driver.pushed, driver.closed) == (0, 1)


def test_a_plan_with_its_own_weights_takes_no_others() -> None:
    engine = Engine()
    engine.refittable = False
    with pytest.raises(GpusqError, match="can't take any"):
        _open(Driver(), engine, weights=Path("model.onnx"), modules=Refitting().modules())


def pretended_graphs(engine: Engine, *, fails: str = "", works: bool = True) -> tuple[GraphDriver, list[str]]:
    """The driver's graph functions: a launch runs the engine as it was captured, unless graphs don't work."""
    called: list[str] = []

    def function(name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            called.append(name)
            if name == "cuStreamBeginCapture_v2":
                assert (arguments[0].value, arguments[1]) == (7, 1)
            if name == "cuGraphInstantiateWithFlags":
                arguments[0]._obj.value = 99
            if name == "cuGraphLaunch":
                assert (arguments[0].value, arguments[1].value) == (99, 7)
                if works:
                    engine.execution.execute_async_v3(7)
                engine.execution.launches += 99
            return 900 if name == fails else 0

        return call

    names = GraphDriver.__annotations__
    return cast("GraphDriver", Named(**{name: function(name) for name in names})), called


def test_timed_inferences_launch_a_graph_that_is_captured_once() -> None:
    engine = Engine()
    driver, called = pretended_graphs(engine)
    session = _open(Driver(), engine, graphs=driver)
    for _ in range(3):
        assert session.timer(feeds(2))() == 0.25
    # Once before the capture and once within it, then three launches of the graph.
    assert engine.execution.launches == 302
    session.timer(feeds(3))()
    assert called.count("cuStreamBeginCapture_v2") == called.count("cuGraphDestroy") == 2
    session.close()
    session.close()
    assert called.count("cuGraphExecDestroy") == 2


@pytest.mark.parametrize(
    ("fails", "match"),
    [
        ("cuStreamBeginCapture_v2", "begin a capture"),
        ("cuStreamEndCapture", "end a capture"),
        ("cuGraphInstantiateWithFlags", "prepare a captured graph"),
        ("cuGraphLaunch", "launch a graph"),
    ],
)
def test_a_graph_that_fails_names_the_step_and_leaves_nothing(fails: str, match: str) -> None:
    engine, cuda = Engine(), Driver()
    driver, called = pretended_graphs(engine, fails=fails)
    session = _open(cuda, engine, graphs=driver)
    with pytest.raises(GpusqError, match=rf"couldn't {match} \(CUDA error 900\)"):
        session.timer(feeds(1))()
    assert cuda.pushed == 0
    assert fails == "cuStreamBeginCapture_v2" or "cuStreamEndCapture" in called
    session.close()


def test_outputs_are_the_graphs_own() -> None:
    """What is compared with the CPU must be what the graph computes, not what was launched to warm up for it."""
    engine = Engine()
    driver, _ = pretended_graphs(engine, works=False)
    session = _open(Driver(), engine, graphs=driver)
    assert np.isnan(session.run(feeds(2))["y"]).all()


def test_graphs_run_what_a_session_is_asked() -> None:
    engine = Engine()
    driver, called = pretended_graphs(engine)
    session = _open(Driver(), engine, graphs=driver)
    for batch in (2, 3, 2):
        np.testing.assert_array_equal(session.run(feeds(batch))["y"], 2 * feeds(batch)["x"])
    assert called.count("cuGraphLaunch") == 3


@pytest.mark.parametrize("can", [True, False])
def test_a_runtime_that_can_tell_is_asked_before_a_capture(can: bool) -> None:
    engine = Engine()

    def capturable(stream: int) -> bool:
        assert stream == 7
        return can

    engine.execution.is_stream_capturable = capturable
    driver, called = pretended_graphs(engine)
    session = _open(Driver(), engine, graphs=driver)
    if can:
        np.testing.assert_array_equal(session.run(feeds(2))["y"], 2 * feeds(2)["x"])
        return
    with pytest.raises(GpusqError, match="can't be captured as a CUDA graph") as caught:
        session.timer(feeds(2))()
    assert "--engine-option capturable" in str(caught.value.hint)
    assert not called


def test_work_that_cant_be_captured_ends_the_capture() -> None:
    engine = Engine()
    driver, called = pretended_graphs(engine)

    def fail() -> None:
        raise GpusqError("no")

    with pytest.raises(GpusqError, match="no"):
        CudaGraph(driver, 7, fail)
    assert called == ["cuStreamBeginCapture_v2", "cuStreamEndCapture"]


def test_a_machine_without_graphs_says_so() -> None:
    said = find_graph_driver("libnothing-of-the-kind.so.9")
    assert isinstance(said, str)
    assert "no NVIDIA driver" in said
    # The C library is a library without the driver's functions.
    old = find_graph_driver("libc.so.6")
    assert isinstance(old, str)
    assert "too old for CUDA graphs" in old


def test_a_failing_kernel_is_told(opened: Opened) -> None:
    session, driver, engine = opened
    engine.execution.works = False
    with pytest.raises(GpusqError, match=r"tensorrt 10\.3 couldn't run the engine"):
        session.run(feeds(1))
    assert driver.pushed == 0


def test_where_memory_runs_out_what_was_taken_is_given_back(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    session, driver, _ = opened
    take = driver.memory

    def fail_once(_size: int) -> int:
        if driver.taken:
            raise CudaError("cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (out of memory)")
        return take(_size)

    monkeypatch.setattr(driver, "memory", fail_once)
    with pytest.raises(GpusqError, match="CUDA failed: cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY") as caught:
        session.run(feeds(4))
    assert "smaller batch" in str(caught.value.hint)
    assert driver.given_back == ["pinned", "memory", "pinned"]
    monkeypatch.undo()
    np.testing.assert_array_equal(session.run(feeds(1))["y"], 2 * feeds(1)["x"])


def test_closing_gives_everything_back(opened: Opened) -> None:
    session, driver, _ = opened
    session.run(feeds(1))
    session.close()
    session.close()
    assert driver.taken == []
    assert (driver.pushed, driver.closed) == (0, 1)
    assert driver.given_back == ["memory", "pinned"] * 2
    with pytest.raises(ValueError, match="closed"):
        session.run(feeds(1))


def test_a_plan_that_cant_be_read_gives_tensorrts_words() -> None:
    driver = Driver()
    with pytest.raises(GpusqError, match="couldn't read the engine: built for another GPU") as caught:
        _open(driver, None, said="built for another GPU")
    assert caught.value.place == "orin.plan"
    assert (driver.pushed, driver.closed) == (0, 1)


def test_types_by_name() -> None:
    assert dtype_from_trt("BF16", place="p") == "bfloat16"
    assert numpy_dtype("bfloat16").itemsize == 2
    with pytest.raises(GpusqError, match="type FP8"):
        dtype_from_trt("FP8", place="p")


def test_ranks_must_fit_the_profile() -> None:
    allowed = {"x": ShapeRange(minimum=(1, 4), best=(4, 4), maximum=(8, 4))}
    check_ranges(allowed, {"x": (8, 4), "static": (3,)}, place="p")
    with pytest.raises(GpusqError, match="'x'"):
        check_ranges(allowed, {"x": (8,)}, place="p")


def test_buffer_sizes() -> None:
    specs = (TensorSpec(name="a", shape=(-1, 3), dtype="bfloat16"), TensorSpec(name="s", shape=(), dtype="int64"))
    assert buffer_bytes(specs, {"a": (2, 3), "s": ()}, place="p") == {"a": 12, "s": 8}
    assert buffer_bytes(specs[:1], {"a": (0, 3)}, place="p") == {"a": 1}
    with pytest.raises(GpusqError, match="depend on the data"):
        buffer_bytes(specs, {"a": (-1, 3), "s": ()}, place="p")


def rtx_plan(size: int) -> bytes:
    return b"vtrt" + bytes(12) + size.to_bytes(8, "little") + bytes(76)


@pytest.mark.parametrize(
    ("plan", "backend", "match"),
    [
        (b"", "tensorrt", "the file is empty"),
        (b"vtrt", "tensorrt-rtx", "only 4 bytes"),
        (b"PK\x03\x04" + bytes(96), "tensorrt", "looks like a zip archive, such as a torch checkpoint"),
        (b"\x08\x0a" + bytes(96), "tensorrt-rtx", "looks like an ONNX model"),
        (rtx_plan(100), "tensorrt", "an engine for tensorrt-rtx, not for tensorrt"),
        (rtx_plan(101), "tensorrt-rtx", "holds 100 of 101 bytes"),
    ],
)
def test_headers_that_are_certainly_wrong(plan: bytes, backend: Any, match: str) -> None:
    with pytest.raises(GpusqError, match=match):
        check_engine_header(plan, backend, place="p")


def test_headers_that_may_be_right() -> None:
    check: Callable[..., None] = check_engine_header
    check(rtx_plan(100), "tensorrt-rtx", place="p")
    check(b"some" + bytes(96), "tensorrt", place="p")
