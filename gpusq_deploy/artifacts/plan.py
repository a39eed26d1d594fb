"""The plan: every decision about every layer, with its reason. Pure data, made before any rewrite."""

from __future__ import annotations

from typing import Literal

import msgspec

from gpusq_deploy.artifacts.base import Value

Precision = Literal["int8", "fp8", "int4", "fp16", "bf16", "fp32"]
FloatPrecision = Literal["fp16", "bf16", "fp32"]
LayerKind = Literal["linear", "patch_embed", "conv"]
AttentionRole = Literal["query", "key", "softmax", "value"]
ResidualRole = Literal["residual", "branch"]
PlacedRole = Literal["query", "key", "softmax", "value", "output", "residual", "branch"]


class ActivationQuantization(Value):
    """One scale for a layer's input, zero point 0, in the layer's precision; docs/numerics.md.

    INT8: x ≈ scale · clip(round(x / scale), -128, 127). FP8: x ≈ scale · E4M3(x / scale), which ends at ±448.
    """

    tensor: str
    amax: float
    scale: float
    origin: str


class WeightQuantization(Value):
    """A weight in the layer's precision behind a DequantizeLinear; `axis` is that of the `channels` output channels.

    One scale for each channel; where `block` isn't 0, one for each channel and `block` consecutive inputs; where
    `one_scale`, which is for INT8, one for all channels, as a product needs that writes INT8.
    """

    tensor: str
    axis: int
    channels: int
    block: int = 0
    one_scale: bool = False


def parts_of(layer: str) -> tuple[str, ...]:
    """The layers that a packed one was made of: `attn.q_proj+k_proj` of `attn.q_proj` and `attn.k_proj`."""
    first, *rest = layer.split("+")
    parent, dot, _ = first.rpartition(".")
    return (first, *(f"{parent}{dot}{leaf}" for leaf in rest))


class LayerDecision(Value):
    """What happens to one weighted layer, and why. N and K are the GEMM's; `macs` counts one sample.

    `activation` is None where the input stays in the float type, as in front of INT4 weights.
    `output_reason` says why its product is written in INT8 or isn't; None where nobody asked.
    `estimate` is what INT8 is predicted to change, from engines that were built with and without it.
    """

    layer: str
    node: str
    kind: LayerKind
    n: int
    k: int
    macs: int
    precision: Precision
    precision_reason: str
    sparse: bool
    sparse_reason: str
    activation: ActivationQuantization | None = None
    weight: WeightQuantization | None = None
    output_reason: str | None = None
    estimate: str | None = None


class PlacedQuantization(Value):
    """An activation that is INT8 beyond the inputs of layers: where `node` reads it, or its own `output`."""

    module: str
    node: str
    role: PlacedRole
    activation: ActivationQuantization
    reason: str


class Fp32Tensor(Value):
    """A tensor that FP16 can't hold: it and the nodes around it stay float32.

    `module` makes it, `amax` it reaches, `constant` says that it is one.
    """

    tensor: str
    module: str
    amax: float
    origin: str
    constant: bool = False


class QuantPlan(Value):
    """Decisions in graph order. `float_type` is the type of all that isn't quantised, but for what `wide` names."""

    schema: Literal["gpusq.plan/1"] = "gpusq.plan/1"
    recipe: str
    float_type: FloatPrecision = msgspec.field(name="remainder")
    sparse_asked: bool
    layers: tuple[LayerDecision, ...]
    placed: tuple[PlacedQuantization, ...] = ()
    wide: tuple[Fp32Tensor, ...] = ()
    notes: tuple[str, ...] = ()
