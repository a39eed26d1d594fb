"""An engine built and run on the GPU at hand, against ONNX Runtime. Skipped, with the reason, where none answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.engines.api import BackendName
from gpusq_deploy.engines.builder import BuildOptions, build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.gpu import Gpu, find_gpu
from gpusq_deploy.engines.layers import totals
from gpusq_deploy.engines.runtimes import open_session, why_not
from gpusq_deploy.targets import Target, load_targets

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
        pytest.skip(f"{backend} can't run plans here: {refusal}")
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


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_agrees_with_onnxruntime(tmp_path: Path, backend: BackendName) -> None:
    target = target_at_hand(backend)
    model, plan = tmp_path / "model.onnx", tmp_path / "model.plan"
    save_model(model)
    settings = BuildSettings(batch=BatchRange(minimum=1, optimum=4, maximum=8))
    capability = "CURRENT" if backend == "tensorrt-rtx" else None
    built = build_engine(model, target, settings, BuildOptions(backend=backend, capability=capability))
    assert totals(built.layers).gemms == {"int8": 1}
    plan.write_bytes(built.plan)

    reference, session = open_session(model, "onnxruntime"), open_session(plan, backend)
    assert session.inputs == reference.inputs
    for batch in (1, 8, 3):
        feeds = {"x": np.random.default_rng(batch).normal(size=(batch, 64)).astype(np.float16)}
        np.testing.assert_allclose(session.run(feeds)["y"], reference.run(feeds)["y"], rtol=0.02, atol=0.02)
        assert session.timer(feeds)() > 0
    session.close()
