"""Models as gpusq-export sees them, without a build."""

from __future__ import annotations

from typing import Any

import msgspec

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.artifacts.manifest import BatchRange, EngineOptions
from gpusq_deploy.artifacts.receipt import BuiltEngine, EngineTotals
from gpusq_deploy.bundle.handover.model import HandedModel
from gpusq_deploy.engines.session import TensorSpec

RANGE = BatchRange(minimum=1, optimum=8, maximum=32)


def spec(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    """A tensor; -1 is dynamic."""
    return TensorSpec(name=name, shape=shape, dtype=dtype)


def engine(target: str = "a100", capability: str = "8.0", **given: Any) -> BuiltEngine:
    """An engine of TensorRT with no layers."""
    made = BuiltEngine(
        target=target,
        backend="tensorrt",
        backend_version="10.16.1",
        source="inspector",
        gpus="some",
        compute_capability=capability,
        engine_file=f"engines/{target}.plan",
        engine_bytes=1,
        engine_digest="sha256:0",
        build_seconds=1.0,
        executed=False,
        totals=EngineTotals(kernels=1, gemms={}, attention_fused=0),
        layers=(),
        engine_layers=(),
    )
    return msgspec.structs.replace(made, **given)


def handed(**given: Any) -> HandedModel:
    """A classifier of 64 classes at 3x32x32."""
    usual: dict[str, Any] = {
        "name": "vit",
        "bundle": "vit.gpusq",
        "digest": "sha256:0",
        "inputs": (spec("input", -1, 3, 32, 32),),
        "outputs": (spec("output", -1, 64),),
        "batch": RANGE,
        "options": EngineOptions(),
        "sparse": False,
        "opset": 20,
        "preprocessing": Preprocessing(
            channels=3, height=32, width=32, mean=(0.5,) * 3, std=(0.5,) * 3, crop_fraction=0.9, origin="test"
        ),
        "labels": (),
        "engines": (),
        "doubts": (),
        "model_files": ("model.onnx",),
    }
    return HandedModel(**{**usual, **given})
