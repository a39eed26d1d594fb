"""Fit the predictor's constants to published measurements, and say how far it is from each when that one is left out.

    python benchmarks/peers/prediction_table.py --json benchmarks/results/prediction.json

`--constants engines/prediction/constants.toml` also writes what the package uses.

Ten constants, the same for every device: eight of engines/prediction/roofline.py, and two of FasterTransformer's own
kernels, which move fewer bytes a cycle and are launched one by one. The logarithms of predicted over measured are made
small (soft L1, 0.15), with a weak pull to what is plausible for each constant. Points of use "apart" are never fitted.
Each fitted point is predicted three times: by all points, by all but itself, and by all but its device's.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from gpusq_deploy.benchmarks.peers.prediction_shapes import Shape, Software, works_of_shape
from gpusq_deploy.benchmarks.peers.prediction_sources import SOURCES, T4
from gpusq_deploy.engines.prediction.constants import Fitted, Spread
from gpusq_deploy.engines.prediction.devices import Device, load_devices
from gpusq_deploy.engines.prediction.parts import Parts, adjustment, parts_of_works
from gpusq_deploy.engines.prediction.roofline import Constants
from gpusq_deploy.engines.prediction.work import Work

_Logs = npt.NDArray[np.float64]

_POINTS = Path(__file__).parent / "prediction_points.csv"
# What each constant is pulled to, and how far it may plausibly be from there: a factor of e to this power.
_GUESS = {
    "ceiling": (0.95, 0.05),
    "fp16_feed": (8.0, 1.0),
    "int8_feed": (8.0, 1.0),
    "softmax": (8.0, 0.5),
    "tile_exponent": (0.2, 0.5),
    "dram_share": (0.85, 0.1),
    "chip_bytes": (8.0, 0.5),
    "launch_us": (2.5, 0.5),
    "ft_chip": (0.7, 0.3),
    "ft_launch_us": (5.0, 0.5),
}
_PULL, _SCALE = 0.3, 0.15
_START = np.log([guess for guess, _ in _GUESS.values()])
_WIDTH = np.array([width for _, width in _GUESS.values()])


class Point(msgspec.Struct, frozen=True):
    """One published measurement with the kernels that it timed."""

    row: dict[str, str]
    works: dict[Work, int]
    device: Device
    software: Software
    measured: float


def main() -> None:
    """Fit, leave out, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--constants", type=Path)
    options = parser.parse_args()
    points = read_points()
    fitted = [point for point in points if point.row["use"] == "fit"]
    whole = _fit(fitted, _START)
    found = _report(points, fitted, whole)
    print(json.dumps({key: found[key] for key in found if key != "points"}, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.constants is not None:
        options.constants.write_text(_toml(packaged(found)))


def packaged(found: dict[str, Any]) -> Fitted:
    """What of a result goes into the package."""
    constants = {name: value for name, value in found["constants"].items() if not name.startswith("ft_")}
    return Fitted(
        points=sum(point["use"] == "fit" for point in found["points"]),
        constants=Constants(**constants),
        fp16=_packed(found["interval"]["fp16"]),
        int8=_packed(found["interval"]["int8"]),
        int8_over_fp16=_packed(found["int8_over_fp16"]),
        calibrated=_packed(found["calibrated"]["same_model"]),
        calibrated_other=_packed(found["calibrated"]["other_precision"]),
    )


def _toml(fitted: Fitted) -> str:
    tables: dict[str, Any] = msgspec.to_builtins(fitted)
    lines = ["# Made by benchmarks/peers/prediction_table.py; see docs/predict.md.", f"points = {tables.pop('points')}"]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {value}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _packed(spread: dict[str, Any]) -> Spread:
    low, high = spread["interval"]
    return Spread(low=low, high=high, median_error=spread["median"])


def read_points() -> list[Point]:
    """Every published measurement, in the file's order."""
    devices = {device.name: device for device in (*load_devices(), T4)}
    with _POINTS.open(newline="", encoding="utf-8") as file:
        return [_point(row, devices) for row in csv.DictReader(file)]


def _point(row: dict[str, str], devices: dict[str, Device]) -> Point:
    software = SOURCES[row["source"]].software
    shape = Shape(
        model=row["model"],
        resolution=int(row["resolution"]),
        patch=int(row["patch"]),
        batch=int(row["batch"]),
        precision=row["precision"],
        software=software,
    )
    works: Counter[Work] = Counter()
    for times, work in works_of_shape(shape):
        works[work] += times
    return Point(row, works, devices[row["device"]], software, float(row["milliseconds"]))


def parts(point: Point, logs: _Logs) -> Parts:
    """Milliseconds of launches and of everything else."""
    values = dict(zip(_GUESS, np.exp(logs), strict=True))
    ft_chip, ft_launch = values.pop("ft_chip"), values.pop("ft_launch_us")
    constants = Constants(**{name: float(value) for name, value in values.items()})
    if point.software == "fastertransformer":
        constants = msgspec.structs.replace(
            constants, chip_bytes=constants.chip_bytes * ft_chip, launch_us=float(ft_launch)
        )
    return parts_of_works(point.works, point.device, constants)


def _fit(points: Sequence[Point], start: _Logs, *, steps: int | None = None) -> _Logs:
    # Without types of its own, and only a fit needs it.
    optimize: Any = importlib.import_module("scipy.optimize")

    def residuals(logs: _Logs) -> _Logs:
        errors = [math.log(parts(point, logs).total / point.measured) for point in points]
        return np.array([*errors, *(_PULL * (logs - _START) / _WIDTH)])

    return np.asarray(
        optimize.least_squares(residuals, start, loss="soft_l1", f_scale=_SCALE, ftol=1e-5, max_nfev=steps).x
    )


def _report(points: Sequence[Point], fitted: Sequence[Point], whole: _Logs) -> dict[str, Any]:
    devices = sorted({point.device.name for point in fitted})
    unseen = {name: _fit([point for point in fitted if point.device.name != name], whole) for name in devices}
    rows: list[dict[str, Any]] = []
    for point in points:
        row: dict[str, Any] = dict(point.row) | {"milliseconds": point.measured}
        row["predicted"] = round(parts(point, whole).total, 4)
        if point.row["use"] == "fit":
            others = [other for other in fitted if other is not point]
            row["left_out"] = round(parts(point, _fit(others, whole, steps=3)).total, 4)
            apart = parts(point, unseen[point.device.name])
            row["device_left_out"], row["of_that_launches"] = round(apart.total, 4), round(apart.launch, 4)
        rows.append(row)
    used = [row for row in rows if row["use"] == "fit"]
    return {
        "what": "published dense measurements of ViT and Swin against the predictor; milliseconds for the batch",
        "constants": {name: float(f"{value:.4g}") for name, value in zip(_GUESS, np.exp(whole), strict=True)},
        "errors": {key: _errors(used, key) for key in ("predicted", "left_out", "device_left_out")},
        "by_device": _by(used, "device"),
        "by_precision": _by(used, "precision"),
        "by_source": _by(used, "source"),
        "interval": {
            precision: _spread(
                [row["milliseconds"] / row["device_left_out"] for row in used if row["precision"] == precision]
            )
            for precision in ("fp16", "int8")
        },
        "int8_over_fp16": _ratios(used),
        "calibrated": _calibrated(used),
        "sources": msgspec.to_builtins(SOURCES),
        "points": rows,
    }


def _errors(rows: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    """Absolute errors, percent of the measured time: median and 90th percentile."""
    errors = [100 * abs(row[key] / row["milliseconds"] - 1) for row in rows]
    return {"median": round(statistics.median(errors), 1), "p90": round(float(np.quantile(errors, 0.9)), 1)}


def _by(rows: Sequence[dict[str, Any]], field: str) -> dict[str, Any]:
    names = sorted({row[field] for row in rows})
    return {name: _group([row for row in rows if row[field] == name]) for name in names}


def _group(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = ("predicted", "left_out", "device_left_out")
    return {"points": len(rows)} | {key: _errors(rows, key)["median"] for key in keys}


def _ratios(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """INT8 over FP16 of one model, batch, device and source: measured over predicted, the device unseen."""
    fields = ("model", "resolution", "patch", "batch", "device", "source")
    fp16_of = {tuple(row[field] for field in fields): row for row in rows if row["precision"] == "fp16"}
    int8_of = {tuple(row[field] for field in fields): row for row in rows if row["precision"] == "int8"}
    pairs = [(int8_of[key], fp16_of[key]) for key in int8_of if key in fp16_of]
    ratios = [
        (int8["milliseconds"] / fp16["milliseconds"]) / (int8["device_left_out"] / fp16["device_left_out"])
        for int8, fp16 in pairs
    ]
    return _spread(ratios)


def _spread(ratios: Sequence[float]) -> dict[str, Any]:
    """Of measured over predicted: what eight of ten lie between, and the errors of the prediction in percent."""
    errors = [100 * abs(1 / ratio - 1) for ratio in ratios]
    return {
        "count": len(ratios),
        "median": round(statistics.median(errors), 1),
        "p90": round(float(np.quantile(errors, 0.9)), 1),
        "interval": [round(float(np.quantile(ratios, share)), 3) for share in (0.1, 0.9)],
    }


def _calibrated(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Errors of each point after a run of another of its source and device, as `--calibrate` does it; device unseen."""
    pairs = [
        (run, row)
        for run in rows
        for row in rows
        if run is not row and (run["source"], run["device"]) == (row["source"], row["device"])
    ]
    tests: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
        "any_run": lambda _run, _row: True,
        "same_precision": lambda run, row: run["precision"] == row["precision"],
        "same_model": lambda run, row: _same(run, row) and run["precision"] == row["precision"],
        "other_precision": lambda run, row: _same(run, row) and run["precision"] != row["precision"],
    }
    return {name: _spread([_scaled(run, row) for run, row in pairs if test(run, row)]) for name, test in tests.items()}


def _same(run: dict[str, Any], row: dict[str, Any]) -> bool:
    return all(run[field] == row[field] for field in ("model", "resolution", "patch"))


def _scaled(run: dict[str, Any], row: dict[str, Any]) -> float:
    """Measured over what is predicted after one run."""
    seen, asked = (
        Parts(launch=one["of_that_launches"], busy=one["device_left_out"] - one["of_that_launches"])
        for one in (run, row)
    )
    return float(row["milliseconds"] / adjustment(seen, run["milliseconds"]).of(asked).total)


if __name__ == "__main__":
    main()
