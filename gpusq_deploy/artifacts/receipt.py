"""The receipt: what was built, read back from the engine builder, beside what was asked."""

from __future__ import annotations

from typing import Literal

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.plan import Precision

Verdict = Literal["yes", "no", "unknown"]


class EngineTensor(Value):
    """A tensor as the engine sees it. A dynamic dimension is -1; `dtype` is the builder's own word."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class EngineLayer(Value):
    """One layer of the engine after fusion, usually one kernel."""

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    tactic: str
    onnx_nodes: tuple[str, ...]


class BuiltLayer(Value):
    """One layer of the model: asked and built. `precision` is None where no engine layer could be found for it."""

    layer: str
    node: str
    asked: Precision
    precision: Precision | None
    engine_layers: tuple[str, ...]
    sparse_asked: bool
    sparse_weights_valid: bool
    sparse_executed: Verdict
    reason: str


class EngineTotals(Value):
    """Counts over one engine. Kernels are engine layers less stream synchronisation (`signal`, `wait`)."""

    kernels: int
    gemms: dict[str, int]
    attention_fused: int


class BuiltEngine(Value):
    """One engine: for which GPUs, by which builder, from which evidence (`source`), and what it holds."""

    target: str
    backend: str
    backend_version: str
    source: str
    gpus: str
    compute_capability: str
    plan_file: str
    plan_bytes: int
    plan_digest: str
    build_seconds: float
    executed: bool
    totals: EngineTotals
    layers: tuple[BuiltLayer, ...]
    engine_layers: tuple[EngineLayer, ...]
    notes: tuple[str, ...] = ()


class SkippedTarget(Value):
    """A target that got no engine here: why, and the command that makes it on the device."""

    target: str
    reason: str
    command: str


class Verification(Value):
    """The Q/DQ graph against the float graph, both run by ONNX Runtime on the CPU.

    `sqnr_db` = 10·log10(Σ ref² / Σ (ref - got)²) over every element of the first output.
    """

    images: int
    held_out: bool
    sqnr_db: float
    cosine: float
    top1_agreement: float | None
    note: str


class Receipt(Value):
    """Everything that can be proven about a bundle's engines."""

    schema: Literal["gpusq.receipt/1"] = "gpusq.receipt/1"
    model_digest: str
    verification: Verification | None
    engines: tuple[BuiltEngine, ...]
    skipped: tuple[SkippedTarget, ...] = ()
