"""Plans are built for real, and run on a device that is pretended: ONNX Runtime on the model, which may err."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gpusq_deploy.artifacts.base import json_from_value
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.benchmarks.gpu import models, possible, prepare, products, runs
from gpusq_deploy.benchmarks.gpu.cases import all_cases
from gpusq_deploy.benchmarks.gpu.graphs import Variant, Variants, leave_out, variants_of
from gpusq_deploy.benchmarks.gpu.kernels import Kernels, kernels_among
from gpusq_deploy.benchmarks.gpu.prepare import make, plan_and_record, reference_of
from gpusq_deploy.benchmarks.gpu.references import repeated, save_reference
from gpusq_deploy.benchmarks.gpu.runs import ITERATIONS, TIME_IS_UP, Engine, Ground
from gpusq_deploy.benchmarks.gpu.values import Finding, Way, Ways
from gpusq_deploy.engines.backend_choice import open_session
from gpusq_deploy.engines.builder import EngineBuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.engine_file import engine_capabilities
from gpusq_deploy.engines.gpu import Gpu
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.errors import GpusqError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx has wheels for Linux on x86-64 only, and isn't installed here",
)

WAY = Way(backend="tensorrt-rtx", capability="SM80", graph=True, names=True)
SPARSE = "sm80_xmma_sparse_gemm_i8i8_i8i32_f32_tn_n_sptensor16x8x64"
CASE = next(case for case in all_cases() if case.name == "ViT-S proj b1 2:4 int8-plain")
MODEL = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B,8,64] x) => (float[B,8,64] y) {
  [mm] h = MatMul(x, w)
  [act] y = Tanh(h)
}"""


class Device:
    """A model on ONNX Runtime; its outputs are `times` as large, and its inferences may refuse to be captured."""

    def __init__(self, model: Path, *, times: float = 1.0, captured: bool = True) -> None:
        self.session, self.times, self.captured = open_session(model, "onnxruntime"), times, captured
        self.inputs, self.outputs = self.session.inputs, self.session.outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if not self.captured:
            raise GpusqError("this plan's inferences can't be captured as a CUDA graph: it allocates while it runs")
        return {name: (y * self.times).astype(y.dtype) for name, y in self.session.run(feeds).items()}

    def timer(self, _feeds: Mapping[str, NDArray[Any]]) -> Callable[[], float]:
        return lambda: 0.5

    def close(self) -> None:
        self.session.close()


def inspector(*_words: object, **_how: object) -> str:
    return "layers"


def two_kernels(_run: object) -> Kernels:
    return Kernels((SPARSE, "epilogue"), (9.0, 1.5))


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """A kit of one model on a machine with a pretended GPU, where plans for SM80 run."""
    random = np.random.default_rng(0)
    weight: list[ir.TensorProtocol] = [ir.Tensor(random.normal(size=(64, 64)).astype(np.float32), name="w")]
    ir.save(ir.from_onnx_text(MODEL, initializers=weight), tmp_path / "m.onnx")
    (tmp_path / "graphs").mkdir()
    leave_out(tmp_path / "m.onnx", tmp_path / "graphs" / "m.onnx")
    variants = (Variant(name="M FP32", graph="m", predicted_us={"8": 100.0}),)
    (tmp_path / "graphs" / "index.json").write_bytes(json_from_value(Variants(variants=variants)))
    (tmp_path / "ways.json").write_bytes(json_from_value(Ways(ways=(WAY,))))
    for room in (models, possible, products):
        monkeypatch.setattr(room, "no_gpu", lambda: "")
    monkeypatch.setattr(runs, "find_gpu", lambda: Gpu("H200", "9.0"))
    monkeypatch.setattr(runs, "torch_problem", lambda: "")
    monkeypatch.setattr(runs, "kernels_of", two_kernels)
    return Ground(tmp_path, tmp_path, time.monotonic() + 60)


def device(monkeypatch: pytest.MonkeyPatch, model: Path, **how: Any) -> list[str]:
    """What is opened runs `model`; returns what was opened."""
    opened: list[str] = []

    def open_it(plan: Path, backend: str, *, cuda_graph: bool) -> Device:
        assert plan.stat().st_size > 1000
        opened.append(f"{backend} {'graph' if cuda_graph else 'stream'}")
        return Device(model, **{**how, "captured": how.get("captured", True) or not cuda_graph})

    monkeypatch.setattr(runs, "open_session", open_it)
    return opened


def test_a_product_is_built_compared_and_timed(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    make(CASE, ground)
    opened = device(monkeypatch, ground.work / f"{CASE.file}.onnx")
    (found,) = products.run(CASE.name, ground)
    assert (found.why_not, len(found.samples_ms), found.sparse_kernels, found.total_us) == ("", ITERATIONS, 1, 10.5)
    assert found.facts["writes"] == "Int8"
    assert found.facts["way"] == "tensorrt-rtx SM80"
    assert found.number("error") is not None
    assert [kernel.kind for kernel in found.built] == ["gemm"]
    assert opened == ["tensorrt-rtx graph"]


def test_wrong_outputs_show_and_their_time_counts_for_nothing(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    for source, step in ((CASE, products), (variants_of(ground.kit).variants[0], models)):
        make(source, ground)
        device(monkeypatch, ground.work / f"{source.file}.onnx", times=0.5)
        for found in step.run(source.name, ground):
            assert not found.right
            assert "its outputs are wrong" in found.why_not


def test_a_model_is_drawn_built_and_measured_at_every_batch(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = models.items(ground)
    (variant,) = variants_of(ground.kit).variants
    make(variant, ground)
    opened = device(monkeypatch, ground.work / f"{variant.file}.onnx", captured=False)
    found = {one.number("batch"): one for one in models.run(name, ground)}
    assert set(found) == set(models.BATCHES)
    for one in found.values():
        assert (one.why_not, len(one.samples_ms)) == ("", ITERATIONS)
        assert one.facts["launch"] == "stream", "what can't be captured is launched by its stream"
    assert found[8].number("predicted_us") == 100.0
    assert opened == ["tensorrt-rtx graph", "tensorrt-rtx stream"], "a plan is loaded once for all batch sizes"


def test_what_couldnt_be_made_is_said_where_it_was_to_run(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_words: Any) -> None:
        raise GpusqError("no memory")

    (variant,) = variants_of(ground.kit).variants
    with monkeypatch.context() as broken:
        broken.setattr(prepare, "build_engine", fail)
        make(variant, ground)
        assert [one.why_not for one in models.run(variant.name, ground)] == ["building failed: no memory"]
        broken.setattr(prepare, "fill", fail)
        make(variant, ground)
        reason = "its graph couldn't be made: no memory"
        assert [one.why_not for one in models.run(variant.name, ground)] == [reason]
    late = ground._replace(deadline=time.monotonic() - 1)
    (found,) = products.run("ViT-B fc1 b8 dense fp16", late)
    assert found.why_not == f"{TIME_IS_UP}; its plan wasn't ready"


def test_a_builder_that_dies_is_said(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_source: object, _ground: Ground) -> None:
        raise SystemExit(3)

    monkeypatch.setattr(prepare, "make", die)
    monkeypatch.setattr(prepare, "all_cases", lambda: (CASE,))
    prepare.prepare(ground, 2)
    (found,) = products.run(CASE.name, ground)
    assert found.why_not == "its builder died with 3"


def test_without_a_way_nothing_runs_and_says_why(ground: Ground) -> None:
    (ground.work / "ways.json").write_bytes(json_from_value(Ways(why_not="no plan runs here: because")))
    for step, name in ((models, "M FP32"), (products, CASE.name)):
        (found,) = step.run(name, ground)
        assert found.why_not == "no plan runs here: because"


def test_the_first_step_builds_runs_and_compares(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ground.kit / "small"
    small.mkdir()
    model = small / "model.onnx"
    (ground.kit / "m.onnx").rename(model)
    save_reference(model, small / "reference.npz")
    opened = device(monkeypatch, model)
    (ground.work / "ways.json").unlink()
    monkeypatch.setattr(possible, "inspect_plan", inspector)
    built, ran, graph, names, inspected = possible.run("build here, tensorrt-rtx SM80", ground)
    assert built.built
    assert [len(one.samples_ms) for one in (ran, graph)] == [ITERATIONS] * 2
    assert (ran.kernels, names.kernels) == ((), (SPARSE, "epilogue"))
    assert inspected.facts == {"said": "layers"}
    assert opened == ["tensorrt-rtx stream", "tensorrt-rtx graph"]
    assert possible.ways_among([built, ran, graph, names]).ways == (WAY,)
    (ground.work / "ways.json").write_bytes(json_from_value(Ways(ways=(WAY,))))
    after = [one.name for one in possible.run("build here, tensorrt-rtx SM80", ground)]
    assert after == [built.name, ran.name], "once there is a best way, the others are run alone"
    # What a dead process left behind: the way is right, and nothing else is tried again.
    assert possible.ways_among([built, ran]).ways == (Way(backend="tensorrt-rtx", capability="SM80"),)


def test_a_reference_is_repeated_up_to_the_batch(ground: Ground) -> None:
    save_reference(ground.kit / "m.onnx", reference_of(ground.work, "m"))
    x, y = repeated(reference_of(ground.work, "m"), 5)
    assert (x.shape, y.shape) == ((5, 8, 64), (5, 8, 64))
    np.testing.assert_array_equal(x[0], x[4])
    reference_of(ground.work, "m").write_bytes(b"PK cut short")
    with pytest.raises(GpusqError, match="can't be read"):
        repeated(reference_of(ground.work, "m"), 5)


@pytest.mark.parametrize("error", [GpusqError("no kernels"), RuntimeError("CUPTI is busy")])
def test_samples_are_kept_where_no_profiler_can_look(
    error: Exception, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_run: object) -> Kernels:
        raise error

    monkeypatch.setattr(runs, "kernels_of", fail)
    plan, _record = plan_and_record(ground.work, "p", WAY)
    plan.write_bytes(bytes(2000))
    device(monkeypatch, ground.kit / "m.onnx")
    x = np.zeros((1, 8, 64), np.float32)
    found = Engine(plan, WAY).timed({"x": x}, Finding(step="models", name="m"))
    assert (len(found.samples_ms), found.kernels) == (ITERATIONS, ())
    assert str(error) in str(found.facts["kernels"])


@pytest.mark.parametrize(("capability", "found"), [(None, ("8.0",)), ("SM86", ("8.6",)), ("", ())])
def test_a_builder_takes_a_capability_in_its_own_words(
    ground: Ground, capability: str | None, found: tuple[str, ...]
) -> None:
    settings = BuildSettings(batch=BatchRange(minimum=1, optimum=1, maximum=1))
    options = EngineBuildOptions(backend="tensorrt-rtx", capability=capability)
    plan = build_engine(ground.kit / "m.onnx", find_target("a100"), settings, options).engine_bytes
    assert engine_capabilities(plan) == found


def test_copies_are_no_kernels() -> None:
    names = ("Memcpy HtoD (Pageable -> Device)", "sm80_xmma_gemm", "Memset (Device)", "Memcpy DtoH (Device -> Pinned)")
    events = [event(name, "DeviceType.CUDA") for name in names]
    events.append(event("cudaLaunchKernel", "DeviceType.CPU"))
    assert kernels_among(events) == Kernels(names=("sm80_xmma_gemm",), microseconds=(7.5,))


def event(name: str, device: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: 7.5))
