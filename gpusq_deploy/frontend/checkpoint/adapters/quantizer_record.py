"""What a file's producer recorded of its quantisers, beside the ranges of inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch

from gpusq_deploy.artifacts import parts_of

_Kept = TypeVar("_Kept")


class RangeProblem(NamedTuple):
    """Why a layer's recorded range can't be used: it stops a build only where that layer is to be quantised."""

    what: str
    place: str
    hint: str


class InputQuantizer(NamedTuple):
    """x → scale · clamp(round((x - offset) / scale), low, high) + offset, whose shape goes with x's."""

    scale: float
    low: float = -128
    high: float = 127
    offset: torch.Tensor | float = 0.0


class WeightGrid(NamedTuple):
    """The INT8 grid of a weight [N, …]: codes are round(127 · w / amax). All float32 [N].

    `largest` and `total` are max |w| and Σ|w| of each channel: where a graph scales a channel, it scales its grid.
    """

    amax: torch.Tensor
    largest: torch.Tensor
    total: torch.Tensor


def weight_grid(amax: torch.Tensor, weight: torch.Tensor) -> WeightGrid:
    """The grid of a weight [N, …] from amax of its output channels, [N] or [1]."""
    rows = weight.detach().float().flatten(1).abs()
    return WeightGrid(amax.float().expand(len(rows)).clone(), rows.amax(1), rows.sum(1))


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerRecord:
    """The quantisers of the model as its producer ran it, by layer.

    Attributes:
        producer: Who quantised; empty: nobody is known to have. A layer that it recorded nothing of ran in floating
            point.
        floats: Layers that ran in floating point although something is recorded of them, each with the reason.
        problems: Layers whose range can't be used.
        types: The precision of a layer's quantisers where it isn't INT8: `fp8`, `int4` or the producer's word.
        grids: The grids of weights.
        inputs: Quantisers of inputs that aren't symmetric INT8 ones of a layer's: affine or unsigned ones, and those of
            modules that multiply by no weight. None of them is built; the model as its producer ran it has them.
        factors: What the layer's input is multiplied by before it is quantised, [K]: SmoothQuant, AWQ.
    """

    producer: str = ""
    floats: Mapping[str, str] = field(default_factory=dict[str, str])
    problems: Mapping[str, RangeProblem] = field(default_factory=dict[str, RangeProblem])
    types: Mapping[str, str] = field(default_factory=dict[str, str])
    grids: Mapping[str, WeightGrid] = field(default_factory=dict[str, WeightGrid])
    inputs: Mapping[str, InputQuantizer] = field(default_factory=dict[str, InputQuantizer])
    factors: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])

    def renamed(self, names: Mapping[str, str], left: Collection[str]) -> QuantizerRecord:
        """The record under other names of layers, without those that were left out."""

        def under(values: Mapping[str, _Kept]) -> dict[str, _Kept]:
            return {names.get(layer, layer): value for layer, value in values.items() if layer not in left}

        return replace(
            self,
            floats=under(self.floats),
            problems=under(self.problems),
            types=under(self.types),
            grids=under(self.grids),
            inputs=under(self.inputs),
            factors=under(self.factors),
        )

    def why_float(self, layer: str, ranges: Mapping[str, float], precision: str) -> str:
        """Why a layer stays float where nothing else was asked; empty where it doesn't.

        Args:
            layer: Its name; that of merged projections stands for all of them.
            ranges: The recorded ranges.
            precision: What it would become.
        """
        for part in parts_of(layer.partition("/")[0]):  # of a module that runs twice, the node's name follows
            if part in self.floats:
                return self.floats[part]
            kind = self.types.get(part, precision)
            if part in ranges and kind != precision:
                return f"{self.producer} quantised it to {kind.upper()}, not to {precision.upper()}"
            if self.producer and part not in ranges and part not in self.problems:
                return f"{self.producer} left it in floating point: no range of its input is recorded"
        return ""
