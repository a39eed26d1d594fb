"""An engine that answers something else than the CPU is not timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from gpusq_deploy import engines
from gpusq_deploy.artifacts.runs import MeasureSettings
from gpusq_deploy.benchmarks.recording import record
from gpusq_deploy.benchmarks.reference import CpuReference
from gpusq_deploy.benchmarks.subject import MeasuredModel
from gpusq_deploy.engines.backend_choice import RuntimeChoice
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.engines.session import Session, TensorSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor

Arrays = dict[str, NDArray[Any]]
FEW = MeasureSettings(warmup=0, iterations=2, repeats=2)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }'
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


class Engine:
    """Relu with an error of a given share of the input; counts what it timed."""

    runtime: str = "tensorrt-rtx"
    runtime_version: str = "0"
    device: str = "none"
    inputs: tuple[TensorSpec, ...] = (TensorSpec(name="x", shape=(-1, 3), dtype="float32"),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec(name="y", shape=(-1, 3), dtype="float32"),)

    def __init__(self, error: float, timed: list[int]) -> None:
        self._error, self._timed = error, timed

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        return {"y": np.maximum(feeds["x"], 0) + self._error * feeds["x"]}

    def timer(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], float]:
        def take() -> float:
            self._timed.append(len(feeds["x"]))
            return 1.0

        return take

    def close(self) -> None:
        pass


def subject(plan: Path, reference: Path | None) -> MeasuredModel:
    plan.write_bytes(b"plan")
    choice = RuntimeChoice(name="tensorrt-rtx", reason="a test")
    return MeasuredModel(plan, "a.plan", choice, None, reference=reference)


def opened(monkeypatch: pytest.MonkeyPatch, error: float) -> list[int]:
    timed: list[int] = []

    def open_engine(_path: Path, _runtime: str, **_options: object) -> Session:
        return Engine(error, timed)

    monkeypatch.setattr(engines, "open_session", open_engine)
    return timed


def test_a_small_error_is_timed_and_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    timed = opened(monkeypatch, 0.01)
    runs = record(subject(tmp_path / "a.plan", model), (8, 2), FEW)
    # An error of 1 % of x against max(x, 0), which has half its power: about 37 dB.
    (note,) = [note for note in runs.notes if "compared" in note]
    assert "before timing: SQNR 3" in note
    assert "at batch 8" in note
    assert "at batch 2" in note
    assert sorted(timed) == [2] * 4 + [8] * 4
    assert runs.outputs == "compared"


def test_a_wrong_engine_is_refused_before_any_sample(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    timed = opened(monkeypatch, 0.5)
    with pytest.raises(GpusqError, match=r"something else than the CPU: output 'y' agrees to \d\.\d dB"):
        record(subject(tmp_path / "a.plan", model), (8,), FEW)
    assert timed == []


def test_what_isnt_compared_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened(monkeypatch, 0.5)
    runs = record(subject(tmp_path / "a.plan", None), (8,), FEW)
    assert any("--reference MODEL.onnx names it" in note for note in runs.notes)
    assert runs.outputs == "not compared"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    runs = record(subject(tmp_path / "a.plan", broken), (8,), FEW)
    assert any(note.startswith("outputs not compared with the CPU: ") for note in runs.notes)
    assert runs.outputs == "not compared"


@pytest.mark.parametrize(
    ("outputs", "said"),
    [({}, "it has 0 outputs, the model 1"), ({"y": np.zeros((2, 4), np.float32)}, r"output 'y' is \[2, 4\]")],
)
def test_other_outputs_are_refused(model: Path, outputs: Arrays, said: str) -> None:
    reference = CpuReference(model)
    with pytest.raises(GpusqError, match=said):
        reference.check({"x": np.ones((2, 3), np.float32)}, outputs, 2)
    reference.close()


def test_a_bf16_model_is_compared_in_float32(tmp_path: Path) -> None:
    """ONNX Runtime's CPU provider can't run it as it is; torch, which can, rounds as BF16 does."""
    # 16384 are the bits of 2.
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[B,3] x) => (float[B,4] y) {
        xb = Cast<to = 16>(x)
        two = Constant<value = bfloat16 {16384}>()
        h = MatMul(xb, w)
        d = Mul(h, two)
        y = Cast<to = 1>(d)
    }"""
    array: NDArray[Any] = array_from_tensor(weights.float()).astype(np.dtype[Any](ml_dtypes.bfloat16))
    held: list[ir.TensorProtocol] = [ir.Tensor(array, name="w")]
    path = tmp_path / "bf16.onnx"
    ir.save(ir.from_onnx_text(text, initializers=held), path)
    with pytest.raises(GpusqError):
        open_onnx(path)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    y = array_from_tensor(((torch.from_numpy(x).bfloat16() @ weights) * 2).float())
    reference = CpuReference(path)
    reference.check({"x": x}, {"y": y}, 8)
    assert 35 < reference.found[8] < 60
    assert "in float32 for BF16" in reference.note()
    with pytest.raises(GpusqError, match="something else than the CPU"):
        reference.check({"x": x}, {"y": -y}, 8)
    reference.close()


SEVERAL = """<ir_version: 10, opset_import: ["" : 20]>
g (float[{batch}, 3] x) => (float[2, {batch}, 3] z, float[3] t, int64[{batch}] k) {{
    first = Constant <value = int64[1] {{0}}>()
    t = Constant <value = float[3] {{1, 2, 3}}>()
    a = Unsqueeze(x, first)
    n = Neg(a)
    z = Concat <axis = 0> (a, n)
    k = ArgMax <axis = 1, keepdims = 0> (x)
}}"""


@pytest.mark.parametrize("batch", ["N", "8"])
def test_samples_are_taken_along_their_own_axis_and_integers_are_counted(tmp_path: Path, batch: str) -> None:
    path = tmp_path / "several.onnx"
    path.write_bytes(onnx.parser.parse_model(SEVERAL.format(batch=batch)).SerializeToString())
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    right = {"z": np.stack([x, -x]), "t": np.array([1, 2, 3], np.float32), "k": x.argmax(1)}
    reference = CpuReference(path)
    reference.check({"x": x}, right, 8)
    assert reference.found == {8: np.inf}
    assert reference.equal == {8: 1.0}
    # Integers beside floats are told and refuse nothing.
    reference.check({"x": x}, {**right, "k": (x.argmax(1) + 1) % 3}, 8)
    assert "0.0% of the values equal at batch 8" in reference.note()
    with pytest.raises(GpusqError, match="output 'z' agrees to -"):
        reference.check({"x": x}, {**right, "z": np.stack([-x, x])}, 8)
    with pytest.raises(GpusqError, match=r"output 'z' is \[8, 2, 3\], not \[2, 8, 3\]"):
        reference.check({"x": x}, {**right, "z": np.stack([x, -x], axis=1)}, 8)
    reference.close()


def test_an_engine_of_integers_alone_is_refused_where_most_differ(tmp_path: Path) -> None:
    path = tmp_path / "classes.onnx"
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[N, 3] x) => (int64[N] k) { k = ArgMax <axis = 1, keepdims = 0> (x) }"""
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    reference = CpuReference(path)
    reference.check({"x": x}, {"k": x.argmax(1)}, 4)
    with pytest.raises(GpusqError, match=r"of output 'k', 0\.0% of the values are equal"):
        reference.check({"x": x}, {"k": (x.argmax(1) + 1) % 3}, 4)
    reference.close()
