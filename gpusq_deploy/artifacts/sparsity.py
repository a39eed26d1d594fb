"""What is known about 2:4 structure, layer by layer."""

from __future__ import annotations

from typing import Literal

from gpusq_deploy.artifacts.base import Value


class GroupViolation(Value):
    """One group of four with more than two non-zeros. `index` is the group's place along K, from 0."""

    row: int
    index: int
    values: tuple[float, ...]


class LayerSparsity(Value):
    """2:4 along the contracted axis K of one weight, seen as [N, K] (Conv: [N·kh·kw, C], per kernel position)."""

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
