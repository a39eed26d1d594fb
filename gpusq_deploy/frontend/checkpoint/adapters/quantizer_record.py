"""What a file's producer recorded of its quantisers, beside the ranges of inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch

from gpusq_deploy.artifacts import QuantizedPrecision, parts_of

# The code of amax.
LARGEST_CODE: Mapping[QuantizedPrecision, int] = {"int8": 127, "fp8": 448, "int4": 7}

# What can be built, the largest first: a scale that more inputs share is written several times.
INT4_BLOCKS = (128, 64, 32)

_Kept = TypeVar("_Kept")


class RangeProblem(NamedTuple):
    """Why a layer's recorded range can't be used: it stops a build only where that layer is to be quantised."""

    what: str
    place: str
    hint: str


class InputQuantizer(NamedTuple):
    """x → scale · clamp(round((x - offset) / scale), low, high) + offset, whose shape goes with x's.

    Of `fp8` rounding is to the nearest E4M3 number.
    """

    scale: float
    low: float = -128
    high: float = 127
    offset: torch.Tensor | float = 0.0
    kind: QuantizedPrecision = "int8"

    def quantized(self, values: torch.Tensor) -> torch.Tensor:
        """The values as the quantiser hands them on; a scale of 0 leaves them."""
        if not self.scale > 0:
            return values
        codes = _rounded((values - self.offset) / self.scale, self.kind, self.low, self.high)
        return codes * self.scale + self.offset


def symmetric_quantizer(amax: float, kind: QuantizedPrecision) -> InputQuantizer:
    """The quantiser of |x| <= amax."""
    largest = LARGEST_CODE[kind]
    return InputQuantizer(amax / largest, -128 if kind == "int8" else -largest, largest, kind=kind)


class WeightGrid(NamedTuple):
    """The grid of a weight [N, …]: codes are w / amax times the kind's largest code, rounded.

    `amax` is float32 [N] or, in blocks of `block` consecutive values of a channel, [N, blocks]. `largest` and `total`
    are max |w| and Σ|w| of each channel, float32 [N]: where a graph scales a channel, it scales its grid. A `narrow`
    grid has no code below that of -amax.
    """

    amax: torch.Tensor
    largest: torch.Tensor
    total: torch.Tensor
    kind: QuantizedPrecision = "int8"
    block: int = 0
    narrow: bool = False

    def spread(self) -> torch.Tensor:
        """Largest magnitudes as they go with the weight's values, [N, K], or [N, 1] without blocks."""
        return self.amax.repeat_interleave(self.block, 1) if self.block else self.amax[:, None]

    def quantized(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight [N, …] on its grid, dequantised, in its own type."""
        rows, amax, largest = weight.detach().float().flatten(1), self.spread(), LARGEST_CODE[self.kind]
        step = torch.where(amax > 0, amax, largest) / largest
        low = -largest if self.narrow or self.kind == "fp8" else -largest - 1
        return (_rounded(rows / step, self.kind, low, largest) * step).reshape(weight.shape).to(weight.dtype)


def weight_grid(
    amax: torch.Tensor, weight: torch.Tensor, kind: QuantizedPrecision = "int8", block: int = 0
) -> WeightGrid:
    """The grid of a weight [N, …] from amax of its output channels, [N] or [1], or of its blocks, [N, blocks]."""
    rows = weight.detach().float().flatten(1).abs()
    ranges = amax.float() if block else amax.float().expand(len(rows))
    return WeightGrid(ranges.clone(), rows.amax(1), rows.sum(1), kind, block)


def _rounded(codes: torch.Tensor, kind: QuantizedPrecision, low: float, high: float) -> torch.Tensor:
    if kind == "fp8":
        return torch.clamp(codes, low, high).to(torch.float8_e4m3fn).to(codes.dtype)
    return torch.clamp(torch.round(codes), low, high)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizerRecord:
    """The quantisers of the model as its producer ran it, by layer.

    Attributes:
        producer: Who quantised; empty: nobody is known to have. A layer that it recorded nothing of ran in floating
            point.
        floats: Layers that ran in floating point although something is recorded of them, each with the reason.
        problems: Layers whose range can't be used.
        types: The precision of a layer's quantisers where it isn't INT8: `fp8`, `int4` or the producer's word.
        grids: The grids of weights, also of those that alone were quantised.
        inputs: Quantisers of inputs that aren't symmetric ones of a layer's: affine or unsigned ones, and those of
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
        if precision == "int4":
            return self._why_not_int4(layer)
        for part in _parts(layer):
            if part in self.floats:
                return self.floats[part]
            kind = self.types.get(part, precision)
            if part in ranges and kind != precision:
                return f"{self.producer} quantised it to {kind.upper()}, not to {precision.upper()}"
            if self.producer and part not in ranges and part not in self.problems:
                return f"{self.producer} left it in floating point: no range of its input is recorded"
        return ""

    def _why_not_int4(self, layer: str) -> str:
        """INT4 in a file without any is the user's wish; where the producer made some, it left the others float."""
        grids = [self.grids.get(part) for part in _parts(layer)]
        if all(grid.kind != "int4" for grid in self.grids.values()):
            return ""
        if any(grid is None or grid.kind != "int4" for grid in grids):
            return f"{self.producer} didn't quantise its weight to INT4"
        if self.trained(layer, {}) is None:
            blocks = sorted({grid.block for grid in grids if grid is not None})
            sizes = ", ".join(map(str, INT4_BLOCKS))
            return f"{self.producer}'s INT4 scales are for blocks of {blocks[0]} inputs; what can be built are {sizes}"
        return ""

    def trained(self, layer: str, ranges: Mapping[str, float]) -> tuple[QuantizedPrecision, int | None] | None:
        """What the producer made of a layer, and how many inputs share a scale of its INT4 weight.

        None where it stayed float, or where we know of no way to build that.
        """
        found = {self._trained(part, ranges) for part in _parts(layer)}
        return found.pop() if len(found) == 1 else None

    def _trained(self, part: str, ranges: Mapping[str, float]) -> tuple[QuantizedPrecision, int | None] | None:
        grid, kind = self.grids.get(part), self.types.get(part, "int8")
        if part in ranges and part not in self.floats:
            return next(((each, None) for each in LARGEST_CODE if each == kind != "int4"), None)
        if grid is None or grid.kind != "int4":
            return None
        block = next((size for size in INT4_BLOCKS if grid.block % size == 0), None)
        return None if block is None else ("int4", block)


def _parts(layer: str) -> tuple[str, ...]:
    return parts_of(layer.partition("/")[0])  # of a module that runs twice, the node's name follows
