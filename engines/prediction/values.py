"""Predicted times as they are kept and printed."""

from __future__ import annotations

from typing import Literal

from gpusq_deploy.artifacts import Value
from gpusq_deploy.engines.prediction.constants import Spread

Variant = Literal["fp16", "bf16", "int8", "2:4"]


class VariantTime(Value):
    """One form of a model on one device: predicted milliseconds of a batch.

    Attributes:
        variant: The float type of the model without Q/DQ; INT8 as it was built; or that with 2:4 weights, at the most
            that sparse tensor cores can give.
        milliseconds: Predicted.
        low, high: Eight of ten published measurements lay this near to their prediction.
        kernels: How many.
        shares: Of the time by what bounds it: launches of all kernels, and the rest of each by its longer term.
    """

    variant: Variant
    milliseconds: float
    low: float
    high: float
    kernels: int
    shares: dict[str, float]


class DevicePrediction(Value):
    """A model on one device.

    Attributes:
        device: Its name; `gpu` the product; `source` where its peak rates come from.
        batch: The batch size.
        times: Each form of the model.
        sparse_saves_most: Share of the dense time that 2:4 could save at most; None where no product can be sparse.
        verdict: Whether sparse INT8 is worth it, in one sentence.
        calibration: The run that the prediction was scaled by; None where none was given.
    """

    device: str
    gpu: str
    source: str
    batch: int
    times: tuple[VariantTime, ...]
    sparse_saves_most: float | None
    verdict: str
    calibration: str | None = None


class Prediction(Value):
    """A model on each device, with what the predictions rest on and how far such predictions were from measurements."""

    model: str
    batch: int
    devices: tuple[DevicePrediction, ...]
    note: str
    errors: dict[str, Spread]
