"""Activation ranges and where they come from."""

from __future__ import annotations

import math
from typing import Literal

from gpusq_deploy.artifacts.base import Value

CalibratorName = Literal["amax", "percentile", "entropy", "mse", "output-error"]
_USUAL_SHARE = 99.99


class Calibrator(Value):
    """How a range is chosen from what was observed. `percentile`: share of the magnitudes that it holds, in percent."""

    name: CalibratorName = "amax"
    percentile: float | None = None

    def __post_init__(self) -> None:
        if self.percentile is None:
            return
        if self.name != "percentile":
            raise ValueError(f'`percentile` belongs to the calibrator "percentile", not to "{self.name}"')
        if not 0 < self.percentile <= 100:
            raise ValueError(f"a percentile lies above 0 and not above 100, unlike {self.percentile}")

    @property
    def share(self) -> float:
        """The percentile, 99.99 where none is named."""
        return _USUAL_SHARE if self.percentile is None else self.percentile

    def __str__(self) -> str:
        return f"percentile {self.share:g}" if self.name == "percentile" else self.name


AMAX = Calibrator()


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

    `source` names the data, `digest` its content as the model saw it, `synthetic` marks random data. `model` is the
    digest of the checkpoint, where known. `warnings` say what looks wrong about the data.
    """

    schema: Literal["gpusq.calibration/1"] = "gpusq.calibration/1"
    source: str
    digest: str
    images: int
    observer: str
    synthetic: bool = False
    model: str = ""
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    ranges: tuple[TensorRange, ...]

    def by_tensor(self) -> dict[str, TensorRange]:
        """Ranges keyed by tensor name."""
        return {entry.tensor: entry for entry in self.ranges}
