from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import onnx_ir as ir
import pytest

from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.engines import builder
from gpusq_deploy.engines.api import Api, load_api, needed_names
from gpusq_deploy.engines.builder import EngineBuildOptions, build_engine, default_backend
from gpusq_deploy.engines.configure import BuildSettings, profile_shapes
from gpusq_deploy.engines.engine_file import check_engine_header, engine_capabilities, engine_misfits, engine_version
from gpusq_deploy.engines.inspection import Made, inspect_plan
from gpusq_deploy.engines.layer_classes import totals
from gpusq_deploy.engines.targets import find_target, load_targets
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.passes.base import run_passes

ModelMaker = Callable[..., Path]

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)

DYNAMIC = BuildSettings(batch=BatchRange(minimum=1, optimum=8, maximum=16))
A100 = find_target("a100")


def sizes(minimum: int, optimum: int, maximum: int) -> BatchRange:
    return BatchRange(minimum=minimum, optimum=optimum, maximum=maximum)


@needs_rtx
@pytest.mark.parametrize(
    ("model", "gemms", "attention"),
    [("fp16", {"fp16": 1}, 0), ("int8", {"int8": 1}, 0), ("weight_only", {"fp16": 1}, 0), ("attention", {}, 1)],
)
def test_what_is_built_is_what_the_graph_says(
    make_model: ModelMaker, model: str, gemms: dict[str, int], attention: int
) -> None:
    path = make_model(model)
    built = build_engine(path, A100, DYNAMIC)
    found = totals(built.layers)
    assert (found.gemms, found.attention_fused) == (gemms, attention)
    assert built.backend == "tensorrt-rtx"
    assert built.source == f"verbose build log of tensorrt-rtx {built.version}"
    assert built.seconds > 0
    check_engine_header(built.engine_bytes, "tensorrt-rtx", place="")


@needs_rtx
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_an_int8_product_is_one_at_every_fixed_batch(make_model: ModelMaker, batch: int) -> None:
    path = make_model(
        """g (float16[B,17,64] x) => (float16[B,17,128] y) {
  [x_q] xq = QuantizeLinear(x, s, z)
  [x_dq] xd = DequantizeLinear(xq, s, z)
  [w_dq] wd = DequantizeLinear<axis = 1>(w8, ws)
  [mm] h = MatMul(xd, wd)
  [bias] y = Add(h, b)
}"""
    )
    built = build_engine(path, A100, BuildSettings(batch=sizes(batch, batch, batch)))
    assert totals(built.layers).gemms == {"int8": 1}


@needs_rtx
def test_equal_builds_give_equal_plans(make_model: ModelMaker) -> None:
    path = make_model("int8")
    first, second = (build_engine(path, A100, DYNAMIC) for _ in range(2))
    assert first.engine_bytes == second.engine_bytes
    assert first.layers == second.layers


@needs_rtx
def test_every_ahead_of_time_target_builds(make_model: ModelMaker) -> None:
    path = make_model("fp16")
    names = [target.name for target in load_targets() if target.ahead_of_time]
    assert names == ["a100", "gb10", "l4", "l40s", "rtx30", "rtx40", "rtx50"]
    for name in names:
        assert build_engine(path, find_target(name), DYNAMIC).engine_bytes


@needs_rtx
def test_a_plans_header_names_its_version_and_its_gpu(make_model: ModelMaker) -> None:
    path = make_model("fp16")
    for target in load_targets():
        if target.ahead_of_time:
            built = build_engine(path, target, DYNAMIC)
            assert engine_version(built.engine_bytes) == built.version
            assert engine_capabilities(built.engine_bytes) == (target.compute_capability,)


@needs_rtx
def test_a_plan_says_that_it_is_for_another_gpu_or_of_another_version(make_model: ModelMaker) -> None:
    built = build_engine(make_model("fp16"), A100, DYNAMIC)
    assert not engine_misfits(built.engine_bytes, version=built.version, capability="8.0")
    assert not engine_misfits(built.engine_bytes, version=built.version, capability=None)
    assert engine_misfits(built.engine_bytes, version="99.0", capability="8.6") == (
        f"it was built by tensorrt-rtx {built.version}, and 99.0 is installed",
        "it was built for compute capability 8.0, and this GPU has 8.6",
    )
    assert not engine_misfits(b"some other engine" + bytes(64), version="99.0", capability="8.6")


@needs_rtx
@pytest.mark.parametrize("name", ["orin", "h100"])
def test_rtx_refuses_other_gpus(make_model: ModelMaker, name: str) -> None:
    with pytest.raises(GpusqError, match=r"can't build for SM(87|90)") as caught:
        build_engine(make_model("fp16"), find_target(name), DYNAMIC, EngineBuildOptions(backend="tensorrt-rtx"))
    assert "SM80" in str(caught.value.hint)


@needs_rtx
def test_settings_reach_the_builder(make_model: ModelMaker) -> None:
    settings = BuildSettings(batch=DYNAMIC.batch, sparse=True, options=EngineOptions(workspace_mib=64, level=0))
    assert build_engine(make_model("int8"), A100, settings).engine_bytes


@needs_rtx
def test_several_profiles_make_one_engine_and_are_counted_once(make_model: ModelMaker) -> None:
    path = make_model("int8")
    one = build_engine(path, A100, DYNAMIC)
    options = EngineOptions(profiles=(sizes(1, 1, 1), sizes(2, 8, 16), sizes(8, 8, 8)))
    three = build_engine(path, A100, BuildSettings(batch=DYNAMIC.batch, options=options))
    assert len(three.engine_bytes) > 2 * len(one.engine_bytes)
    assert totals(three.layers).gemms == {"int8": 1}
    assert [layer.kind for layer in three.layers if layer.kind == "gemm"] == ["gemm"]
    # The first profile holds one batch size alone, so its shapes are known.
    shapes = {tensor.shape for layer in three.layers for tensor in layer.outputs}
    assert shapes
    assert all(size > 0 for shape in shapes for size in shape)


@needs_rtx
def test_limits_and_streaming_change_the_plan(make_model: ModelMaker) -> None:
    path = make_model("fp16")
    plain = build_engine(path, A100, DYNAMIC).engine_bytes
    streaming = BuildSettings(batch=DYNAMIC.batch, options=EngineOptions(weight_streaming=True))
    assert build_engine(path, A100, streaming).engine_bytes != plain
    assert build_engine(path, A100, DYNAMIC).engine_bytes == plain


@needs_rtx
def test_all_that_a_backend_cant_do_is_told_at_once_and_before_the_build(make_model: ModelMaker) -> None:
    options = EngineOptions(
        version_compatible=True, hardware="ampere-plus", timing_cache="caches", error_on_cache_miss=True
    )
    with pytest.raises(GpusqError, match="version-compatible") as caught:
        build_engine(make_model("fp16"), A100, BuildSettings(batch=DYNAMIC.batch, options=options))
    for part in ("no builder flag VERSION_COMPATIBLE", "hardware=ampere-plus", "times nothing while it builds"):
        assert part in caught.value.what
    assert caught.value.what.count(";") == 2


@needs_rtx
def test_external_data_is_found(make_model: ModelMaker) -> None:
    path = make_model("fp16", external_data="weights.bin", size_threshold_bytes=0)
    assert (path.parent / "weights.bin").stat().st_size > 64 * 128 * 2
    assert build_engine(path, A100, DYNAMIC).engine_bytes


@needs_rtx
@pytest.mark.slow
def test_an_old_builder_in_a_cycle_is_not_destroyed_inside_the_next_ones_log(make_model: ModelMaker) -> None:
    # Wherever the collector may run while the log is written, it does: without a pause, the old builder's destructor
    # waits for the lock that the new one's constructor holds.
    script = """
import gc, sys
from pathlib import Path
import tensorrt_rtx
import onnx_ir as ir
import pytest

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.engines.build_log import BuildLog
from gpusq_deploy.engines.builder import build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.targets import find_target
gc.set_threshold(10**9)
add = BuildLog.add
def add_and_collect(log, severity, text):
    if gc.isenabled():
        gc.collect()
    add(log, severity, text)
BuildLog.add = add_and_collect
logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
cycle = [tensorrt_rtx.Builder(logger)]
cycle.append(cycle)
del cycle
settings = BuildSettings(batch=BatchRange(minimum=1, optimum=8, maximum=16))
print(len(build_engine(Path(sys.argv[1]), find_target("a100"), settings).engine_bytes), gc.isenabled())
"""
    command = [sys.executable, "-c", script, str(make_model("fp16"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    size, enabled = done.stdout.split()
    assert int(size) > 0
    assert enabled == "True"


@needs_rtx
def test_a_static_batch_needs_no_profile(make_model: ModelMaker) -> None:
    path = make_model("g (float16[4,64] x) => (float16[4,128] y) { [mm] y = MatMul(x, w) }")
    four = BuildSettings(batch=BatchRange(minimum=4, optimum=4, maximum=4))
    assert build_engine(path, A100, four).engine_bytes
    with pytest.raises(GpusqError, match="static batch 4, not 1:8:16"):
        build_engine(path, A100, DYNAMIC)


@needs_rtx
def test_an_operator_that_cant_be_parsed_is_named(make_model: ModelMaker) -> None:
    path = make_model("g (float16[B,64] x) => (int64[2,M] y) { [where] y = NonZero(x) }")
    with pytest.raises(
        GpusqError, match=r"can't parse the model: node 'where' \(NonZero\): .*NonZero plugin"
    ) as caught:
        build_engine(path, A100, DYNAMIC)
    assert caught.value.place == f"{path}: node 'where' (NonZero), made by the exporter"


@dataclass(frozen=True)
class AddNonZero:
    """A pass that makes what no builder takes."""

    name: ClassVar[str] = "add-nonzero"

    def run(self, model: ir.Model) -> int:
        """Put a NonZero behind the first node."""
        node = model.graph[0]
        extra = ir.node("NonZero", [node.outputs[0]], name="bad_one")
        model.graph.append(extra)
        model.graph.outputs.append(extra.outputs[0])
        extra.outputs[0].shape = ir.Shape([2, "M"])
        extra.outputs[0].dtype = ir.DataType.INT64
        extra.outputs[0].name = "where"
        return 1


@needs_rtx
def test_a_node_that_a_pass_made_names_the_pass(make_model: ModelMaker) -> None:
    path = make_model("fp16")
    ir.save(run_passes(ir.load(path), [AddNonZero()]), path)
    with pytest.raises(GpusqError, match="can't parse the model: node 'bad_one'") as caught:
        build_engine(path, A100, DYNAMIC)
    assert caught.value.place == f"{path}: node 'bad_one' (NonZero), made by pass add-nonzero"


@needs_rtx
def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(GpusqError, match="can't parse the model"):
        build_engine(path, A100, DYNAMIC)


@needs_rtx
def test_a_graph_that_cant_be_built_gives_the_builders_words(make_model: ModelMaker) -> None:
    path = make_model("g (float16[4,64] x, float[4,64] u) => (float[4,64] y) { [add] y = Add(x, u) }")
    with pytest.raises(GpusqError, match=r"tensorrt-rtx .* (couldn't build|can't parse)"):
        build_engine(path, A100, BuildSettings(batch=BatchRange(minimum=4, optimum=4, maximum=4)))


@needs_rtx
def test_progress_is_told(make_model: ModelMaker) -> None:
    seen: list[tuple[str, int, int]] = []

    def see(phase: str, done: int, steps: int) -> None:
        seen.append((phase, done, steps))

    build_engine(make_model("fp16"), A100, DYNAMIC, EngineBuildOptions(progress=see))
    assert ("Building engine", 1, 6) in seen
    assert all(done <= steps for _, done, steps in seen)


@needs_rtx
def test_a_failing_callback_stops_the_build_and_is_raised(make_model: ModelMaker) -> None:
    calls: list[str] = []

    def fail(phase: str, _done: int, _steps: int) -> None:
        calls.append(phase)
        raise RuntimeError("no screen")

    with pytest.raises(RuntimeError, match="no screen"):
        build_engine(make_model("fp16"), A100, DYNAMIC, EngineBuildOptions(progress=fail))
    assert len(calls) == 1


@needs_rtx
def test_ctrl_c_stops_a_build_cleanly(make_model: ModelMaker) -> None:
    pressed: list[float] = []

    def press(_phase: str, _done: int, _steps: int) -> None:
        if not pressed:
            pressed.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
            # The builder goes on only when the main thread has been told.
            time.sleep(0.3)

    # Where the tests run as a background job of a shell, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(make_model("fp16"), A100, DYNAMIC, EngineBuildOptions(progress=press))
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed
    time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == "gpusq-builder"]


@needs_rtx
def test_rtx_has_no_timing_cache(make_model: ModelMaker) -> None:
    with pytest.raises(GpusqError, match="tensorrt-rtx times nothing"):
        build_engine(make_model("fp16"), A100, DYNAMIC, EngineBuildOptions(timing_cache=b""))


# What an inspector answers of a dynamic engine, without and with an execution context.
BLIND = """{"Layers": [{"Name": "mm", "LayerType": "gemm", "Inputs": [{"Name": "x", "Dimensions": [-1, 64],
"Format/Datatype": "N/A due to dynamic shapes"}], "Constants": [], "Outputs": [], "TacticName": "",
"Metadata": "[ONNX Layer: mm]"}]}"""
INSPECTED = """{"Layers": [{"Name": "mm", "LayerType": "gemm", "Inputs": [{"Name": "x", "Dimensions": [8, 64],
"Format/Datatype": "Int8"}], "Constants": [{"Name": "w", "Dimensions": [64, 128], "Format/Datatype": "Int8"}],
"Outputs": [], "TacticName": "sm87_xmma_sparse_gemm_i8i8_i8i32_f32", "Metadata": "[ONNX Layer: mm]"}]}"""


class ReadBack:
    """A pretended runtime, engine, context, inspector and refitter in one; it insists on the order of things."""

    refittable = True
    num_io_tensors = 2
    num_errors = 0

    def __init__(self, *, stripped: bool = False, takes: bool = True) -> None:
        self.lacks_weights, self.takes = stripped, takes
        self.engine_host_code_allowed = False
        self.allowed_host_code: bool | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.execution_context: ReadBack | None = None

    def deserialize_cuda_engine(self, _plan: bytes) -> ReadBack:
        self.allowed_host_code = self.engine_host_code_allowed
        return self

    def refit_from_file(self, _path: str) -> bool:
        return True

    def get_missing_weights(self) -> list[str]:
        return []

    def refit_cuda_engine(self) -> bool:
        self.lacks_weights = False
        return True

    def get_tensor_name(self, index: int) -> str:
        return "yx"[index]

    def get_tensor_mode(self, name: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(name="INPUT" if name == "x" else "OUTPUT")

    def get_tensor_profile_shape(self, _name: str, profile: int) -> list[tuple[int, int]]:
        assert profile == 0
        return [(1, 64), (8, 64), (16, 64)]

    def create_execution_context(self) -> ReadBack | None:
        return None if self.lacks_weights else self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return self.takes

    def create_engine_inspector(self) -> ReadBack:
        return self

    def get_engine_information(self, _format: object) -> str:
        return INSPECTED if self.execution_context is self and self.shapes == {"x": (8, 64)} else BLIND


@pytest.fixture
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[ReadBack], None]:
    """TensorRT itself needs a GPU: its twin builds in its place, with a pretended runtime to read the engine back."""

    def pretend(device: ReadBack) -> None:
        def given(*_words: object) -> ReadBack:
            return device

        real = load_api("tensorrt-rtx")
        parts: dict[str, object] = {name: getattr(real, name) for name in needed_names()}
        pretended = types.SimpleNamespace(
            **{**parts, "Runtime": given, "Refitter": given, "OnnxParserRefitter": given, "__version__": "10.3"}
        )
        monkeypatch.setattr(builder, "load_api", {"tensorrt": pretended}.__getitem__)

    return pretend


@needs_rtx
def test_layers_of_a_device_build_come_from_the_inspector_at_the_best_size(
    make_model: ModelMaker, on_a_device: Callable[[ReadBack], None]
) -> None:
    device = ReadBack()
    on_a_device(device)
    built = build_engine(make_model("int8"), find_target("orin"), DYNAMIC)
    assert built.backend == "tensorrt"
    assert built.source == "engine inspector of tensorrt 10.3 at batch 8"
    assert totals(built.layers).gemms == {"int8": 1}
    assert built.layers[0].inputs[0].shape == (8, 64)
    assert device.allowed_host_code is False


@needs_rtx
def test_a_plan_that_refuses_its_own_best_size_is_told(
    make_model: ModelMaker, on_a_device: Callable[[ReadBack], None]
) -> None:
    on_a_device(ReadBack(takes=False))
    with pytest.raises(GpusqError, match=r"couldn't take \[8, 64\] for 'x'"):
        build_engine(make_model("int8"), find_target("orin"), DYNAMIC)


@pytest.mark.parametrize("host_code", [False, True])
def test_a_plan_without_weights_gets_them_before_it_is_inspected(tmp_path: Path, host_code: bool) -> None:
    device = ReadBack(stripped=True)

    def given(*_words: object) -> ReadBack:
        return device

    formats = types.SimpleNamespace(JSON="JSON")
    api = types.SimpleNamespace(Runtime=given, Refitter=given, OnnxParserRefitter=given, LayerInformationFormat=formats)

    def made(thing: Any, step: str) -> Any:
        assert thing is not None, step
        return thing

    text = inspect_plan(
        b"plan",
        cast("Api", api),
        cast("Any", None),
        cast("Made", made),
        stripped=tmp_path / "model.onnx",
        host_code=host_code,
    )
    assert text == INSPECTED
    assert device.allowed_host_code is host_code


def test_a_builder_that_cant_start_says_why(make_model: ModelMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_logger: object) -> None:
        raise TypeError("factory function returned nullptr")

    flags = types.SimpleNamespace(__members__={})
    pretended = types.SimpleNamespace(
        __version__="10.3",
        ILogger=object,
        Builder=start,
        BuilderFlag=flags,
        HardwareCompatibilityLevel=flags,
        IBuilderConfig=object,
    )
    monkeypatch.setattr(builder, "load_api", {"tensorrt": pretended}.__getitem__)
    with pytest.raises(GpusqError, match=r"tensorrt 10\.3 couldn't start its builder: factory function"):
        build_engine(make_model("fp16"), find_target("orin"), DYNAMIC)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(GpusqError, match="no such model file"):
        build_engine(tmp_path / "none.onnx", A100, DYNAMIC)


def test_the_default_backend_builds_ahead_of_time_where_that_can_be_done() -> None:
    assert default_backend(A100) == "tensorrt-rtx"
    assert default_backend(find_target("orin")) == "tensorrt"


def test_profiles_cover_dynamic_batches_only() -> None:
    ranges = profile_shapes({"x": (-1, 3, 8, 8), "table": ()}, DYNAMIC.batch, place="m")
    assert ranges == {"x": ((1, 3, 8, 8), (8, 3, 8, 8), (16, 3, 8, 8))}


def test_all_shape_problems_are_told_at_once() -> None:
    with pytest.raises(GpusqError, match=r"'x' \[-1, 3, -1, 8\] is dynamic.*'y' \[4, 2\] has the static batch 4"):
        profile_shapes({"x": (-1, 3, -1, 8), "y": (4, 2)}, DYNAMIC.batch, place="m")


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        EngineOptions(workspace_mib=0)
    for level in (-1, 6):
        with pytest.raises(ValueError, match="must be 0 to 5"):
            EngineOptions(level=level)
    with pytest.raises(ValueError, match="isn't within the batch range"):
        BuildSettings(batch=DYNAMIC.batch, options=EngineOptions(profiles=(sizes(1, 8, 17),)))
