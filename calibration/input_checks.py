"""Does the data look as the model's preprocessing says? What doesn't is told, never refused: data may be unusual.

Most mistakes are made where arrays are prepared by hand: pixels of 0…255, pixels of 0…1 that were never normalised,
or another model's mean and deviation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpusq_deploy.artifacts import CalibrationTable, Preprocessing
from gpusq_deploy.graph import GraphLayer
from gpusq_deploy.text import counted

# Statistics are whole numbers in units of 1/1024, up to ±1024: sums are then the same in any order and grouping.
_UNIT = 1024
_MOST = 1024
# Resizing with bicubic weights overshoots by a few percent unless it is clamped.
_OVERSHOOT = 0.1
# Photographs nearly always hold something black and something white; this share of the full span is unusual.
_NARROW = 0.6
# One sample in so many of one colour is told.
_FLAT_SHARE = 10
# Fewer samples than this are told: the documented number is a few dozen.
_FEW = 8
# Calibrated against recorded range of the patch embedding's input.
_FAR = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class InputStatistics:
    """Of the network's input, per channel: extremes, and sums of values and squares in units of 1/1024 and its square.

    `count` is the number of values per channel; `flat` of the `samples` hold one value per channel alone: one colour.
    """

    count: int
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    total: tuple[int, ...]
    squares: tuple[int, ...]
    samples: int
    flat: int

    def mean(self) -> tuple[float, ...]:
        """Mean of each channel."""
        return tuple(total / self.count / _UNIT for total in self.total)

    def deviation(self) -> tuple[float, ...]:
        """Standard deviation of each channel."""
        means = self.mean()
        return tuple(
            math.sqrt(max(squares / self.count / _UNIT**2 - mean**2, 0.0))
            for squares, mean in zip(self.squares, means, strict=True)
        )

    def plus(self, other: InputStatistics) -> InputStatistics:
        """The statistics of both parts; exact."""
        return InputStatistics(
            count=self.count + other.count,
            minimum=tuple(map(min, self.minimum, other.minimum)),
            maximum=tuple(map(max, self.maximum, other.maximum)),
            total=tuple(a + b for a, b in zip(self.total, other.total, strict=True)),
            squares=tuple(a + b for a, b in zip(self.squares, other.squares, strict=True)),
            samples=self.samples + other.samples,
            flat=self.flat + other.flat,
        )


def statistics_of(batch: npt.NDArray[np.float32]) -> InputStatistics:
    """Statistics of a batch [N, channels, height, width], or any whose second axis is taken for channels."""
    planes = np.moveaxis(batch, 1, 0).reshape(batch.shape[1], -1)
    units = np.rint(np.clip(planes.astype(np.float64), -_MOST, _MOST) * _UNIT).astype(np.int64)
    return InputStatistics(
        count=planes.shape[1],
        minimum=tuple(map(float, planes.min(axis=1))),
        maximum=tuple(map(float, planes.max(axis=1))),
        total=tuple(map(int, units.sum(axis=1))),
        squares=tuple(map(int, (units**2).sum(axis=1))),
        samples=len(batch),
        flat=int(_flat(batch).sum()),
    )


def _flat(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """By sample, whether each channel of an image is one value; whether all of it is, where it is no image."""
    parts = batch.reshape(len(batch), batch.shape[1] if batch.ndim == 4 else 1, -1)
    found: npt.NDArray[np.bool_] = (parts.min(axis=2) == parts.max(axis=2)).all(axis=1)
    return found


def input_warnings(seen: InputStatistics, declared: Preprocessing) -> tuple[str, ...]:
    """What about the input contradicts the declared mean and deviation, if any; one sentence at most."""
    if not (declared.is_image and declared.is_declared):
        return ()
    channels = [
        _Channel(low=(0 - mean) / std, high=(1 - mean) / std, least=least, most=most)
        for mean, std, least, most in zip(declared.mean, declared.std, seen.minimum, seen.maximum, strict=True)
    ]
    farthest, widest = max(channels, key=lambda c: c.outside), max(channels, key=lambda c: c.used)
    if farthest.outside > _OVERSHOOT:
        return (f"{farthest}: {_outside_cause(seen)}",)
    if widest.used < _NARROW and 2 * seen.flat < seen.samples:
        return (f"{widest}: {_narrow_cause(seen, widest.used)}",)
    return ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Channel:
    """The extremes of one channel: as declared from `low` to `high`, found from `least` to `most`."""

    low: float
    high: float
    least: float
    most: float

    @property
    def outside(self) -> float:
        """How far it reaches beyond what is declared, as a share of that."""
        return max(self.low - self.least, self.most - self.high) / (self.high - self.low)

    @property
    def used(self) -> float:
        """How much of what is declared it spans."""
        return (self.most - self.least) / (self.high - self.low)

    def __str__(self) -> str:
        return (
            f"the calibration data spans {self.least:.3g} to {self.most:.3g}, images normalised as the model declares "
            f"{self.low:.3g} to {self.high:.3g}"
        )


def sameness_warnings(seen: InputStatistics, different: int) -> tuple[str, ...]:
    """Images of one colour, a tenth or more of all; or the same few samples again and again."""
    told: list[str] = []
    if seen.flat * _FLAT_SHARE >= seen.samples:
        are = "is" if seen.flat == 1 else "are"
        told.append(
            f"{seen.flat} of {counted(seen.samples, 'calibration sample')} {are} one colour: ranges found on them "
            "don't hold for photographs"
        )
    if different < min(_FEW, seen.samples):
        differ = "is distinct: the others repeat it" if different == 1 else "are distinct: the others repeat them"
        told.append(f"{different} of {counted(seen.samples, 'calibration sample')} {differ}")
    return tuple(told)


def few_warnings(table: CalibrationTable) -> tuple[str, ...]:
    """Ranges found on a handful of real samples; at most one sentence."""
    if table.synthetic or table.images >= _FEW:
        return ()
    return (
        f"calibrated on only {counted(table.images, 'sample')}: larger values of other inputs are clipped; "
        "give a few dozen typical images",
    )


def range_warnings(
    table: CalibrationTable, layers: Sequence[GraphLayer], recorded: Mapping[str, float]
) -> tuple[str, ...]:
    """Patch embeddings whose calibrated input range is far from the one that the checkpoint was trained with."""
    calibrated = table.by_tensor()
    return tuple(
        f"the input of {layer.layer} reaches {calibrated[layer.input].amax:.4g}, "
        f"the checkpoint records {recorded[layer.layer]:.4g}: is the data normalised as in training?"
        for layer in layers
        if layer.kind == "patch_embed"
        and layer.input in calibrated
        and recorded.get(layer.layer)
        and not 1 / _FAR <= calibrated[layer.input].amax / recorded[layer.layer] <= _FAR
    )


def _outside_cause(seen: InputStatistics) -> str:
    if min(seen.minimum) >= 0 and max(seen.maximum) > 16:
        return "these look like pixels of 0…255; divide by 255, subtract the mean and divide by std"
    return "it looks normalised with another model's mean and std"


def _narrow_cause(seen: InputStatistics, used: float) -> str:
    if min(seen.minimum) >= 0 and max(seen.maximum) <= 1:
        return "these look like pixels of 0…1 that were never normalised; subtract the mean and divide by std"
    return f"that is {used:.0%}; it is normalised with another mean and std, or has little contrast"
