"""What FP16 can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FP16_LARGEST = float(np.finfo(np.float16).max)
FLOAT32_LARGEST = float(np.finfo(np.float32).max)
# Half a step above the largest number: from here on, rounding to nearest even gives infinity.
_ROUNDS_TO_INFINITY = FP16_LARGEST + 16


def stands_for_infinity(array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where an array holds float32's largest number, of either sign: attention masks write infinity like that."""
    found: npt.NDArray[np.bool_] = np.abs(array) == FLOAT32_LARGEST
    return found


def largest_finite(array: npt.NDArray[Any]) -> float:
    """The largest magnitude that isn't infinite, NaN or stands for infinity; 0 where there is none."""
    largest = max(float(np.max(array, initial=0.0)), -float(np.min(array, initial=0.0)))
    if largest < FLOAT32_LARGEST:
        return largest
    meant = np.isfinite(array) & ~stands_for_infinity(array)
    return float(np.max(np.abs(array[meant]), initial=0.0))


def overflows_fp16(array: npt.NDArray[Any]) -> bool:
    """Whether a finite value of it would become infinite."""
    return largest_finite(array) >= _ROUNDS_TO_INFINITY
