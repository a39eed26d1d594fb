"""Masks in COCO's run-length encoding, read by pycocotools."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

_library: Any = importlib.import_module("pycocotools.mask")


def decoded(mask: Any) -> npt.NDArray[np.bool_]:
    """Booleans [height, width]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its arrays know no `copy` of NumPy 2
        return np.asarray(_library.decode(mask), np.bool_)
