"""What CI expects of a receipt, as a TOML file."""

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
