"""Launches and everything else of a model's time, and how one measured run corrects them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpusq_deploy.engines.prediction.devices import Device
from gpusq_deploy.engines.prediction.roofline import Constants, time_of
from gpusq_deploy.engines.prediction.work import Work

# A run that is faster than what it isn't corrected by: more than fivefold is no correction any more.
_LEAST = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Milliseconds of kernels' launches, and of what they do."""

    launch: float
    busy: float

    @property
    def total(self) -> float:
        """Both."""
        return self.launch + self.busy


@dataclass(frozen=True, kw_only=True, slots=True)
class Adjustment:
    """Measured over predicted, of launches and of the rest; 1 where nothing was measured."""

    launch: float = 1.0
    busy: float = 1.0

    def of(self, parts: Parts) -> Parts:
        """The same time as the device was seen to be."""
        return Parts(launch=parts.launch * self.launch, busy=parts.busy * self.busy)


def parts_of_works(works: Mapping[Work, int], device: Device, constants: Constants) -> Parts:
    """Of kernels, each so many times."""
    times = [(time_of(work, device, constants), count) for work, count in works.items()]
    return Parts(
        launch=sum(time.launch * count for time, count in times) / 1e3,
        busy=sum(time.busy * count for time, count in times) / 1e3,
    )


def adjustment(predicted: Parts, measured: float) -> Adjustment:
    """What a run corrects: the larger part of its time, by all that it differs.

    Args:
        predicted: Of the run.
        measured: Its milliseconds.
    """
    if predicted.launch > predicted.busy:
        return Adjustment(launch=max((measured - predicted.busy) / predicted.launch, _LEAST))
    return Adjustment(busy=max((measured - predicted.launch) / predicted.busy, _LEAST))
