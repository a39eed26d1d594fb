"""What a whole engine takes on a device: a prediction, with the interval in which measurements were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpusq_deploy.engines.prediction.constants import Fitted
from gpusq_deploy.engines.prediction.devices import Device
from gpusq_deploy.engines.prediction.parts import Adjustment
from gpusq_deploy.engines.prediction.roofline import Bound, time_of
from gpusq_deploy.engines.prediction.values import DevicePrediction, Variant, VariantTime
from gpusq_deploy.engines.prediction.verdict import verdict
from gpusq_deploy.engines.prediction.work import Work

_BOUNDS: tuple[Bound, ...] = ("tensor cores", "memory", "launch")


def predict(
    forms: Mapping[Variant, Sequence[Work]],
    device: Device,
    fitted: Fitted,
    *,
    batch: int,
    seen: Adjustment | None = None,
    calibration: str | None = None,
) -> DevicePrediction:
    """Every form of a model on a device.

    Args:
        forms: Kernels of each, with the shapes of the batch.
        device: The GPU.
        fitted: The constants and their errors.
        batch: The batch size, for the record.
        seen: What one run on the device corrects; None where nothing was measured.
        calibration: What that run was, in words.
    """
    built = "int8" if "int8" in forms else next(iter(forms))
    times = tuple(
        _time(variant, works, device, fitted, seen, same=variant in {built, "2:4"}) for variant, works in forms.items()
    )
    by = {time.variant: time.milliseconds for time in times}
    dense = next((time for time in reversed(times) if time.variant != "2:4"), None)
    saves = 1 - by["2:4"] / dense.milliseconds if dense is not None and "2:4" in by else None
    return DevicePrediction(
        device=device.name,
        gpu=device.gpu,
        source=device.source,
        batch=batch,
        times=times,
        sparse_saves_most=saves,
        verdict=verdict(times, saves, fitted.int8_over_fp16),
        calibration=calibration,
    )


def _time(
    variant: Variant, works: Sequence[Work], device: Device, fitted: Fitted, seen: Adjustment | None, *, same: bool
) -> VariantTime:
    """`same` says that what was seen was in this form's precision."""
    times = [time_of(work, device, fitted.constants) for work in works]
    correct = seen or Adjustment()
    shares = dict.fromkeys(_BOUNDS, 0.0)
    for time in times:
        shares["launch"] += time.launch * correct.launch
        shares["tensor cores" if time.tensor > time.memory else "memory"] += time.busy * correct.busy
    total = sum(shares.values())
    int8 = any(work.precision == "int8" for work in works)
    if seen is None:
        spread = fitted.int8 if int8 else fitted.fp16
    else:
        spread = fitted.calibrated if same else fitted.calibrated_other
    return VariantTime(
        variant=variant,
        milliseconds=total / 1e3,
        low=total / 1e3 * spread.low,
        high=total / 1e3 * spread.high,
        kernels=len(works),
        shares={bound: share / total for bound, share in shares.items()},
    )
