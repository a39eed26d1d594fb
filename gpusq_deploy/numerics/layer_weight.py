"""One layer's weight as the 2:4 check sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from gpusq_deploy.artifacts import LayerKind


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWeight:
    """One weight as rows along the contracted axis: [N, K], or [N · kernel positions, channels] for a Conv.

    `positions` is the number of kernel positions; `macs` counts one sample's multiply-accumulates, 0 where unknown.
    """

    layer: str
    tensor: str
    kind: LayerKind
    rows: npt.NDArray[Any]
    positions: int = 1
    macs: int = 0


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a tensor of this shape can be a weight of a product: two axes or more of more than one index."""
    return sum(size > 1 for size in shape) > 1
