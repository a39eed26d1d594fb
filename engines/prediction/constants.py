"""The fitted constants and how far predictions with them were from published measurements: constants.toml.

Both come from benchmarks/results/prediction.json, which benchmarks/peers/prediction_table.py writes.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import resources

from gpusq_deploy.artifacts import Value, value_from_toml
from gpusq_deploy.engines.prediction.roofline import Constants


class Spread(Value):
    """Measured over predicted: eight of ten published measurements lie between `low` and `high`.

    `median_error` is the median of |predicted / measured - 1|, in percent.
    """

    low: float
    high: float
    median_error: float


class Fitted(Value):
    """What `constants.toml` holds.

    Attributes:
        points: Published measurements that the constants are fitted to.
        constants: Of all of them.
        fp16, int8: Errors by precision, each device unseen by the fit that predicts it; FP16's stand for other floats.
        int8_over_fp16: Errors of the ratio of the two on one device.
        calibrated, calibrated_other: Errors after one run of the same model on the device: in the run's precision, and
            in another.
    """

    points: int
    constants: Constants
    fp16: Spread
    int8: Spread
    int8_over_fp16: Spread
    calibrated: Spread
    calibrated_other: Spread


@lru_cache(maxsize=1)
def load_fitted() -> Fitted:
    """The constants of this package.

    Raises:
        GpusqError: The file is damaged.
    """
    file = resources.files("gpusq_deploy.engines") / "prediction" / "constants.toml"
    return value_from_toml(file.read_text(encoding="utf-8"), Fitted, place=str(file), what="the predictor's constants")
