"""What is known about 2:4 structure, layer by layer."""

from __future__ import annotations

from typing import Literal

from gpusq_deploy.artifacts.base import Value

# What a weight looks like. What to do about each: bundle/report/sparse_chain.py and docs/sparsity.md.
Diagnosis = Literal[
    "valid", "unaligned", "near misses", "damaged", "wrong axis", "mask lost", "unstructured", "dense", "unknown"
]

# How weights are chosen, without training. The meaning of each: sparsity/pruning/one_layer.py and docs/pruning.md.
PruneMethod = Literal["magnitude", "activation", "second-order"]
# What follows pruning: distillation of the whole model, or reconstruction block by block; and the same in INT8.
CompressStage = Literal["prune", "prune,qat", "reconstruct", "reconstruct,int8"]
RECONSTRUCTIONS: tuple[CompressStage, ...] = ("reconstruct", "reconstruct,int8")
"""The stages that train nothing."""
# How it is trained; sparsity/training/options.py says what each is.
TrainOptimizer = Literal["adamw", "sgd"]
RateSchedule = Literal["cosine", "constant"]
MixedPrecision = Literal["bf16", "fp16"]


class GroupViolation(Value):
    """One group of four with more than two non-zeros. `index` is the group's place along K, from 0."""

    row: int
    index: int
    values: tuple[float, ...]


class WorstGroup(Value):
    """The violation that rounding explains least: of all groups, the largest third-largest magnitude in its row.

    `ratio` is `value` over the row's largest magnitude, 0...1.
    """

    row: int
    index: int
    value: float
    ratio: float


class LayerSparsity(Value):
    """2:4 along the contracted axis K of one weight, seen as [N, K] (Conv: [N·kh·kw, C], per kernel position).

    Attributes:
        layer: Name of the layer.
        tensor: Name of its weight.
        n: Rows; k: length of the contracted axis.
        groups: Groups of four; violations: those with more than two non-zeros.
        first: The first violation in row-major order.
        zero_fraction: Share of exact zeros, 0...1.
        expected: Whether the layer should be 2:4; reason: who says so.
        places: (row, group) of the first few violations.
        worst: The worst violation; None where there is none.
        diagnosis: What the weight looks like.
        dtype: Stored type, such as `float32` or `int8`; empty where it wasn't recorded.
        positions: Kernel positions of a Conv; 1 for a product.
        macs: Multiply-accumulates of one sample; 0 where they are unknown.
    """

    layer: str
    tensor: str
    n: int
    k: int
    groups: int
    violations: int
    first: GroupViolation | None = None
    zero_fraction: float
    expected: bool
    reason: str
    places: tuple[tuple[int, int], ...] = ()
    worst: WorstGroup | None = None
    diagnosis: Diagnosis = "unknown"
    dtype: str = ""
    positions: int = 1
    macs: int = 0

    @property
    def valid(self) -> bool:
        """True where every group of four along K has at most two non-zeros and K is a multiple of 4."""
        return self.violations == 0 and self.k % 4 == 0


class SparsityReport(Value):
    """The 2:4 state of every weighted layer, in graph order."""

    schema: Literal["gpusq.sparsity/1"] = "gpusq.sparsity/1"
    source: str
    layers: tuple[LayerSparsity, ...]

    @property
    def broken(self) -> tuple[LayerSparsity, ...]:
        """Layers that should be 2:4 and are not."""
        return tuple(layer for layer in self.layers if layer.expected and not layer.valid)


class SparsityRecord(Value):
    """What a checkpoint says about itself: the layers that were pruned and how."""

    pattern: Literal["2:4"] = "2:4"
    method: str
    layers: tuple[str, ...]
