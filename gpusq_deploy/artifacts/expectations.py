"""What CI expects of a receipt, and of a change from one bundle to another, as TOML files."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.plan import Precision
from gpusq_deploy.artifacts.receipt import YesNoUnknown

EVERY_ENGINE = "*"
_BOUND = re.compile(r"\s*(<=|>=|<|>|=)\s*(\d+(?:\.\d+)?)\s*")


_GRAMMAR = "the grammar is in docs/receipts.md"
# As `engines.layers` names what a GEMM multiplies in.
GemmType = Literal["int8", "fp16", "bf16", "fp32", "fp8", "int4", "fp4", "unknown"]


def _no_bounds() -> dict[GemmType, str]:
    return {}


class LayerExpectation(Value):
    """What the layers whose names `match` must be. `sparse` is what the engine does, `weights` what the model holds."""

    match: str
    precision: Precision | None = None
    weights: Literal["2:4", "dense"] | None = None
    sparse: YesNoUnknown | None = None

    def __post_init__(self) -> None:
        if self.precision is None and self.weights is None and self.sparse is None:
            raise ValueError(f"the rule for {self.match!r} expects nothing: give precision, weights or sparse")


class EngineExpectation(Value):
    """What one engine must be: bounds such as ">= 48". `int8_flops` is a share of the weighted layers' FLOPs, 0...1."""

    kernels: str | None = None
    attention_fused: str | None = None
    gemms: dict[GemmType, str] = msgspec.field(default_factory=_no_bounds)
    int8_flops: str | None = None
    layers: tuple[LayerExpectation, ...] = msgspec.field(name="layer", default=())

    def __post_init__(self) -> None:
        bounds = [self.kernels, self.attention_fused, self.int8_flops, *self.gemms.values()]
        given = [bound for bound in bounds if bound is not None]
        if not given and not self.layers:
            raise ValueError("the engine's table expects nothing")
        for bound in given:
            parse_bound(bound)


class Expectations(Value):
    """A whole file. `engines` by target name or alias, or `*`; `sqnr_db` bounds the verification's SQNR."""

    schema: Literal["gpusq.expect/1"]
    sqnr_db: str | None = None
    engines: dict[str, EngineExpectation] = msgspec.field(name="engine")

    def __post_init__(self) -> None:
        if not self.engines:
            raise ValueError("no engine is named")
        if self.sqnr_db is not None:
            parse_bound(self.sqnr_db)


class EngineBudgets(Value):
    """How much worse one engine may become: bounds on head less base, growths in percent.

    Attributes:
        kernels_more: Kernels.
        attention_lost: Fused attentions.
        type_lost: Layers that are no longer INT8, FP8 or INT4.
        sparse_lost: Layers whose sparse kernel, or whose 2:4 weights, are lost.
        bytes_growth: Bytes that all kernels move at the optimal batch.
        engine_growth: Bytes of the engine file.
        predicted_growth: Predicted time: no measurement, see docs/predict.md.
        allow: Shell patterns of layers that may lose their type or their sparsity.
    """

    kernels_more: str | None = None
    attention_lost: str | None = None
    type_lost: str | None = None
    sparse_lost: str | None = None
    bytes_growth: str | None = None
    engine_growth: str | None = None
    predicted_growth: str | None = None
    allow: tuple[str, ...] = ()

    @property
    def bounds(self) -> dict[str, str]:
        """The bounds that are given, by name."""
        names = (name for name in self.__struct_fields__ if name != "allow")
        return {name: bound for name in names if (bound := getattr(self, name)) is not None}

    def __post_init__(self) -> None:
        if not self.bounds:
            raise ValueError("the engine's table allows and forbids nothing")
        for bound in self.bounds.values():
            parse_bound(bound)


class ChangeBudgets(Value):
    """How much worse a bundle may become than another; `engines` by target name or alias, or `*`.

    Attributes:
        sqnr_drop: Decibels of the verification's SQNR, base less head.
        agreement_drop: Points of its agreement, hundredths.
        accuracy_drop: Points of the task's measure on labelled data.
        size_growth: Bytes of all files, in percent.
        preprocessing: Whether it may change.
    """

    schema: Literal["gpusq.expect-change/1"]
    sqnr_drop: str | None = None
    agreement_drop: str | None = None
    accuracy_drop: str | None = None
    size_growth: str | None = None
    preprocessing: Literal["same", "any"] | None = None
    engines: dict[str, EngineBudgets] = msgspec.field(name="engine", default_factory=dict[str, EngineBudgets])

    @property
    def bounds(self) -> dict[str, str]:
        """The bounds of the whole bundle that are given, by name."""
        names = ("sqnr_drop", "agreement_drop", "accuracy_drop", "size_growth")
        return {name: bound for name in names if (bound := getattr(self, name)) is not None}

    def __post_init__(self) -> None:
        if not self.bounds and not self.engines and self.preprocessing is None:
            raise ValueError("no budget is given")
        for bound in self.bounds.values():
            parse_bound(bound)


class Check(Value):
    """One expectation and what came of it."""

    engine: str
    what: str
    expected: str
    got: str
    held: bool


def parse_bound(bound: str) -> tuple[str, float]:
    """The comparison and the limit of a bound such as `>= 48`.

    Raises:
        ValueError: It isn't one.
    """
    found = _BOUND.fullmatch(bound)
    if found is None:
        raise ValueError(f"{bound!r} is not a bound such as '>= 48', '<= 125' or '= 0'")
    return found[1], float(found[2])
