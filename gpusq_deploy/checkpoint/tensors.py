"""The border between torch and numpy."""

from __future__ import annotations

from typing import Any, cast

import numpy.typing as npt
import torch


def array_from_tensor(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The tensor's values as a numpy array that shares its memory; torch leaves the array's type open."""
    return cast("npt.NDArray[Any]", tensor.numpy())
