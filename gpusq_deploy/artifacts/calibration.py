"""Activation ranges and where they come from."""

from __future__ import annotations

import math
from typing import Literal

from gpusq_deploy.artifacts.base import Value


class TensorRange(Value):
    """The symmetric range of one activation: |x| <= amax. `origin` says who measured it."""

    tensor: str
    layer: str
    amax: float
    origin: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amax) and self.amax >= 0):
            raise ValueError(f"amax of {self.tensor} must be finite and not negative, not {self.amax}")


class CalibrationTable(Value):
    """Ranges of every quantisable activation.

    `source` names the data, `digest` its content as the model saw it, `synthetic` marks random data.
    """

    schema: Literal["gpusq.calibration/1"] = "gpusq.calibration/1"
    source: str
    digest: str
    images: int
    observer: str
    synthetic: bool = False
    skipped: tuple[str, ...] = ()
    ranges: tuple[TensorRange, ...]

    def by_tensor(self) -> dict[str, TensorRange]:
        """Ranges keyed by tensor name."""
        return {entry.tensor: entry for entry in self.ranges}
