"""What FP16 can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FP16_LARGEST = float(np.finfo(np.float16).max)
# Half a step above the largest number: from here on, rounding to nearest even gives infinity.
_ROUNDS_TO_INFINITY = FP16_LARGEST + 16


def largest_finite(array: npt.NDArray[Any]) -> float:
    """The largest magnitude that isn't infinite or NaN; 0 of an empty array."""
    largest = max(float(np.max(array, initial=0.0)), -float(np.min(array, initial=0.0)))
    return largest if np.isfinite(largest) else float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0))


def overflows_fp16(array: npt.NDArray[Any]) -> bool:
    """Whether a finite value of it would become infinite."""
    return largest_finite(array) >= _ROUNDS_TO_INFINITY
