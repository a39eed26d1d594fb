"""How long a model takes on a GPU that isn't here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike, path_of
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from gpusq_deploy.engines import Prediction


def predict_times(
    path: PathLike,
    *,
    devices: Sequence[str] = (),
    batch: int | None = None,
    calibrate: PathLike | None = None,
    reporter: Reporter | None = None,
) -> Prediction:
    """Predict a bundle's or an ONNX model's time on GPUs in its float type, in INT8 and with 2:4 weights.

    Nothing is timed: see docs/predict.md for what it rests on and how far it was from measurements.

    Args:
        path: The bundle or the `.onnx` file.
        devices: Names, as in docs/predict.md; none: those that are predicted by default.
        batch: The batch size; None: the bundle's optimum, the graph's own, or 1.
        calibrate: What gpusq-bench wrote of this bundle on the one device named.
        reporter: Who hears how it goes; nobody.

    Raises:
        GpusqError: An unknown device, a model that can't be compiled, or runs of something else.
    """
    from gpusq_deploy.artifacts import require_input
    from gpusq_deploy.compile import PredictRequest, predict_times
    from gpusq_deploy.engines import find_device, load_devices

    found = tuple(find_device(name) for name in devices)
    if calibrate is not None and len(found) != 1:
        raise GpusqError(
            f"--calibrate is of one device, {len(found)} are named", place="--calibrate", hint="name it with --device"
        )
    place, runs = Path(path), path_of(calibrate)
    for file in (place, runs):
        if file is not None:
            require_input(file)
    chosen = found or tuple(device for device in load_devices() if device.default)
    request = PredictRequest(path=place, devices=chosen, batch=batch, calibrate=runs)
    return predict_times(request, reporter or SILENT)
