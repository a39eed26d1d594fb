"""Engines built and run on the GPU, through every package that calls CUDA; skipped, with the reason, if none."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.engines.api import BackendName
from gpusq_deploy.engines.backend_choice import open_session, why_not
from gpusq_deploy.engines.builder import EngineBuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.cuda_api import CUDA_NAMES, CudaName, find_cuda, open_cuda
from gpusq_deploy.engines.cuda_session import open_engine
from gpusq_deploy.engines.gpu import Gpu, find_gpu
from gpusq_deploy.engines.layer_classes import totals
from gpusq_deploy.engines.session import Session
from gpusq_deploy.engines.targets import Target, load_targets

pytestmark = pytest.mark.gpu

MODEL = """<ir_version: 10, opset_import: ["" : 20]>
g (float16[B,64] x) => (float16[B,128] y) {
  [x_q] xq = QuantizeLinear(x, s, z)
  [x_dq] xd = DequantizeLinear(xq, s, z)
  [w_dq] wd = DequantizeLinear<axis = 1>(w, ws)
  [mm] y = MatMul(xd, wd)
}"""


def target_at_hand(backend: BackendName) -> Target:
    refusal = why_not(backend)
    if refusal is not None:
        pytest.skip(f"{backend} can't run engines here: {refusal}")
    gpu = find_gpu()
    assert isinstance(gpu, Gpu)
    for target in load_targets():
        # On the GPU itself tensorrt-rtx may build for one that it has no name for.
        builds = backend == "tensorrt-rtx" or backend in target.on_device
        if target.compute_capability == gpu.compute_capability and builds:
            return target
    pytest.skip(f"{backend} has no target for this {gpu.name} ({gpu.compute_capability})")


def save_model(path: Path) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {
        "w": random.integers(-127, 128, size=(64, 128)).astype(np.int8),
        "ws": random.uniform(0.001, 0.01, size=128).astype(np.float16),
        "s": np.asarray(0.02, np.float16),
        "z": np.asarray(0, np.int8),
    }
    initializers: list[ir.TensorProtocol] = [ir.Tensor(array, name=name) for name, array in arrays.items()]
    ir.save(ir.from_onnx_text(MODEL, initializers=initializers), path)


@dataclass(frozen=True, kw_only=True)
class Built:
    """An engine of two profiles, and the model that it was built from."""

    model: Path
    plan: Path
    backend: BackendName


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    backend: BackendName = request.param
    target = target_at_hand(backend)
    folder = tmp_path_factory.mktemp(backend)
    model, plan = folder / "model.onnx", folder / "model.plan"
    save_model(model)
    small, large = BatchRange(minimum=1, optimum=4, maximum=8), BatchRange(minimum=3, optimum=32, maximum=32)
    whole = BatchRange(minimum=1, optimum=4, maximum=32)
    settings = BuildSettings(batch=whole, options=EngineOptions(profiles=(small, large)))
    capability = "CURRENT" if backend == "tensorrt-rtx" else None
    result = build_engine(model, target, settings, EngineBuildOptions(backend=backend, capability=capability))
    assert totals(result.layers).gemms == {"int8": 1}
    plan.write_bytes(result.engine_bytes)
    return Built(model=model, plan=plan, backend=backend)


@pytest.fixture(params=CUDA_NAMES)
def through(request: pytest.FixtureRequest) -> Sequence[CudaName]:
    found = find_cuda([request.param])
    if isinstance(found, str):
        pytest.skip(found)
    return [request.param]


def feeds(batch: int) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(batch).normal(size=(batch, 64)).astype(np.float16)}


def check(built: Built, session: Session, batches: Sequence[int]) -> None:
    reference = open_session(built.model, "onnxruntime")
    assert session.inputs == reference.inputs
    for batch in batches:
        found, wanted = session.run(feeds(batch))["y"], reference.run(feeds(batch))["y"]
        np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.02)
        assert session.timer(feeds(batch))() > 0


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_plan_agrees_with_onnxruntime_in_every_profile(
    built: Built, through: Sequence[CudaName], cuda_graph: bool
) -> None:
    with closing(open_engine(built.plan, built.backend, cuda_graph=cuda_graph, through=through)) as session:
        check(built, session, (1, 8, 32, 3))


def test_two_sessions_and_torch_share_a_process(built: Built, through: Sequence[CudaName]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    before = torch.arange(1000, device="cuda")
    first = open_engine(built.plan, built.backend, through=through)
    with closing(open_engine(built.plan, built.backend, through=through)) as second:
        check(built, first, (1,))
        first.close()
        check(built, second, (4,))
    # The context that both gave back is still torch's.
    assert int(before.sum()) == 499500


def test_more_memory_than_there_is_is_refused_in_words(through: Sequence[CudaName]) -> None:
    device = open_cuda(through, place="p")
    device.push()
    try:
        with pytest.raises(device.Error, match=r"(?i)out.of.memory"):
            device.memory(1 << 50)
        source, target, address = device.pinned(1 << 20), device.pinned(1 << 20), device.memory(1 << 20)
        source[:] = np.random.default_rng(0).integers(0, 256, source.size)
        device.upload(address, source)
        device.download(target, address)
        device.synchronize()
        np.testing.assert_array_equal(target, source)
        device.free(address)
        device.unpin(source)
        device.unpin(target)
    finally:
        device.pop()
        device.close()
