"""Synthetic runs, fake sessions and a bundle's papers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.artifacts.base import digest_of_bytes, json_from_value
from gpusq_deploy.artifacts.build_options import BuildOptionsRecord
from gpusq_deploy.artifacts.manifest import NO_OPTIONS, BatchRange, EngineOptions, Manifest, ModelSource
from gpusq_deploy.artifacts.receipt import BuiltEngine, EngineTotals, Receipt
from gpusq_deploy.artifacts.runs import Environment, MeasureSettings, Runs, RuntimeInfo, Series
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.bundle.files import files_in
from gpusq_deploy.engines.session import TensorSpec

Matrix = NDArray[np.float64]
MakeRuns = Callable[[Mapping[int, Matrix]], Runs]
DrawSamples = Callable[..., Matrix]


@pytest.fixture
def make_runs() -> MakeRuns:
    """Runs from a matrix [repeats, iterations] per batch size; all of one shape."""

    def make(samples: Mapping[int, Matrix]) -> Runs:
        repeats, iterations = next(iter(samples.values())).shape
        series = tuple(
            Series(batch=batch, repeat=repeat, warmup=2, samples_ms=tuple(matrix[repeat].tolist()))
            for repeat in range(repeats)
            for batch, matrix in samples.items()
        )
        return Runs(
            created="2026-01-01T00:00:00+00:00",
            model="model.onnx",
            model_digest="sha256:00",
            runtime=RuntimeInfo(name="onnxruntime", version="1.0", device="Some CPU", threads=2, reason="asked for"),
            environment=Environment(
                cpu="Some CPU",
                cores=2,
                cpu_quota=None,
                os="Linux",
                python="3.11.0",
                gpu=None,
                gpu_driver=None,
                clocks_locked=None,
            ),
            settings=MeasureSettings(warmup=2, iterations=iterations, repeats=repeats),
            outputs="reference",
            series=series,
        )

    return make


@pytest.fixture
def draw() -> DrawSamples:
    """Log-normal latencies around 10 ms: a spread between repeats and one within them."""

    def sample(
        seed: int, *, factor: float = 1.0, repeats: int = 5, iterations: int = 40, between: float = 0.01
    ) -> Matrix:
        rng = np.random.default_rng(seed)
        noise = between * rng.standard_normal((repeats, 1)) + 0.02 * rng.standard_normal((repeats, iterations))
        latencies: Matrix = 10 * factor * np.exp(noise)
        return latencies

    return sample


class FakeSession:
    """Answers y = x; its clock counts calls; everything is written to a shared log."""

    runtime: str = "fake"
    runtime_version: str = "0"
    device: str = "none"

    def __init__(self, log: list[str], shape: tuple[int, ...] = (-1, 3), dtype: str = "float32") -> None:
        self.log = log
        self.clock = 0
        self.spec = TensorSpec(name="x", shape=shape, dtype=dtype)
        self.answer: NDArray[Any] | None = None
        log.append("open")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (self.spec,)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (self.spec,)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.log.append(f"run {len(feeds['x'])}")
        return {"y": feeds["x"] if self.answer is None else self.answer}

    def timer(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], float]:
        def take() -> float:
            self.log.append(f"time {len(feeds['x'])}")
            self.clock += 1
            return float(self.clock)

        return take

    def close(self) -> None:
        self.log.append("close")


@pytest.fixture
def fake_session() -> type[FakeSession]:
    return FakeSession


@pytest.fixture
def write_bundle(tmp_path: Path) -> Callable[..., Path]:
    """A bundle of manifest, receipt, something as a model, and plans, each (backend, file name[, compute capability]).

    `engine` is what the manifest says, `options` what the receipt does; None: nothing, as in old ones.
    """

    def write(
        batch: BatchRange,
        plans: tuple[tuple[str, ...], ...] = (),
        *,
        engine: EngineOptions = NO_OPTIONS,
        options: EngineOptions | None = None,
        model: Path | None = None,
    ) -> Path:
        folder = tmp_path / "bundle"
        (folder / "engines").mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"a model" if model is None else model.read_bytes())
        for _, file, *_ in plans:
            (folder / "engines" / file).write_bytes(file.encode())
        engines = tuple(msgspec.structs.replace(_built(*plan), options=options) for plan in plans)
        receipt = Receipt(model_digest="sha256:0", verification=None, engines=engines)
        (folder / "receipt.json").write_bytes(json_from_value(receipt))
        manifest = Manifest(
            created="2026-01-01T00:00:00+00:00",
            versions={},
            source=ModelSource(
                file="m.pt", digest="sha256:0", format="x", arch=ArchSpec(source="timm", name="vit_tiny_patch16_224")
            ),
            preprocessing=Preprocessing(channels=1, height=2, width=2, mean=(0.0,), std=(1.0,), origin="test"),
            recipe="test",
            options=BuildOptionsRecord(),
            batch=batch,
            opset=19,
            inputs={},
            outputs={},
            synthetic_calibration=False,
            sparsity=SparsityReport(source="test", layers=()),
            files=files_in(folder),
            engine=engine,
        )
        (folder / "manifest.json").write_bytes(json_from_value(manifest))
        return folder

    return write


def _built(backend: str, file: str, compute_capability: str = "8.7") -> BuiltEngine:
    return BuiltEngine(
        target="test",
        backend=backend,
        backend_version="1",
        source="test",
        gpus="test",
        compute_capability=compute_capability,
        engine_file=f"engines/{file}",
        engine_bytes=len(file),
        engine_digest=digest_of_bytes(file.encode()),
        build_seconds=1.0,
        executed=False,
        totals=EngineTotals(kernels=0, gemms={}, attention_fused=0),
        layers=(),
        engine_layers=(),
    )
