"""Predicted times on a terminal, never without their errors."""

from __future__ import annotations

from gpusq_deploy.bundle.report.tables import print_pairs, print_rows, result_console
from gpusq_deploy.engines import DevicePrediction, Prediction, VariantTime

_TITLES = {"int8": "INT8", "2:4": "2:4 at best"}
_FEW = 10
_AT_MOST = (
    "2:4 is what sparse tensor cores could give at most: no time of a sparse INT8 ViT was found to check it, "
    "and FP16 Linear layers on an Orin Nano saved half of it or less"
)


def print_prediction(found: Prediction) -> None:
    """A table with a row for each device, a verdict for each, and how far such predictions were from measurements."""
    console = result_console()
    variants = [time.variant for time in found.devices[0].times] if found.devices else []
    titles = [_TITLES.get(variant, variant.upper()) for variant in variants]
    headings = ["device", *(f"{title}, ms" for title in titles), "products / moving / launches", "2:4 saves at most"]
    print_rows(
        console,
        f"{found.model}, batch {found.batch}: predicted milliseconds",
        headings,
        [_row(device) for device in found.devices],
        right=headings[1:],
    )
    print_pairs(console, "", [(device.device, device.verdict) for device in found.devices])
    console.print(f"\n{found.note}", highlight=False, markup=False)
    for line in _errors(found):
        console.print(line, highlight=False, markup=False)


def _row(device: DevicePrediction) -> list[str]:
    dense = next(time for time in reversed(device.times) if time.variant != "2:4")
    shares = " / ".join(f"{dense.shares[bound]:.0%}" for bound in ("tensor cores", "memory", "launch"))
    saves = "" if device.sparse_saves_most is None else f"{device.sparse_saves_most:.0%}"
    return [device.device, *map(_time, device.times), shares, saves]


def _time(time: VariantTime) -> str:
    digits = 2 if time.milliseconds < _FEW else 1
    value, low, high = (f"{part:.{digits}f}" for part in (time.milliseconds, time.low, time.high))
    return f"{value} ({low} to {high})"


def _errors(found: Prediction) -> list[str]:
    names = {"fp16": "FP16", "int8": "INT8", "int8_over_fp16": "INT8 over FP16"}
    medians = ", ".join(f"{name} {found.errors[key].median_error:g} %" for key, name in names.items())
    lines = [
        f"median error on published measurements, their device unseen: {medians}; in brackets what 8 of 10 were in"
    ]
    run = next((device.calibration for device in found.devices if device.calibration is not None), None)
    if run is not None:
        same, other = (found.errors[name].median_error for name in ("calibrated", "calibrated_other"))
        lines.append(
            f"corrected by one run: {run}; after that the median error is {same:g} %, {other:g} % in another type"
        )
    return [
        *lines,
        _AT_MOST,
    ]
