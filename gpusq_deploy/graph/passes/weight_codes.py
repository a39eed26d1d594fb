"""What a quantised weight is stored as: codes, scales, and how a DequantizeLinear reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import Precision
from gpusq_deploy.numerics import amax_per_channel, fp8_codes, fp8_scale

# The type of the codes, for precisions that have codes.
CODE_TYPES: dict[Precision, ir.DataType] = {
    "int8": ir.DataType.INT8,
    "fp8": ir.DataType.FLOAT8E4M3FN,
    "int4": ir.DataType.INT4,
}


def zero_points(shape: tuple[int, ...], codes: ir.DataType) -> npt.NDArray[Any]:
    """Zeros of the codes' type."""
    dtype = cast("npt.DTypeLike", codes.numpy())
    return np.zeros(shape, dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredWeight:
    """A weight's codes in the initializer's layout.

    Attributes:
        codes: The weight's shape.
        scale: [channels], or [] for all of them; with blocks, as the codes, but shorter by `block` along the inputs.
        axis: Of the output channels.
        block: Inputs that share a scale; 0 where there are no blocks.
    """

    codes: npt.NDArray[Any]
    scale: npt.NDArray[np.float32]
    axis: int
    block: int = 0

    @property
    def attributes(self) -> dict[str, int]:
        """Of the DequantizeLinear. With blocks, its axis is the one that they lie along: the inputs'."""
        if self.block:
            return {"axis": 1 - self.axis, "block_size": self.block}
        return {"axis": self.axis} if self.scale.ndim else {}

    def turned(self) -> StoredWeight:
        """The transpose of a matrix."""
        scale = self.scale.T if self.block else self.scale
        return StoredWeight(codes=self.codes.T, scale=scale, axis=1 - self.axis, block=self.block)


def int8_weight(
    codes: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], axis: int, *, one_scale: bool
) -> StoredWeight:
    """INT8 from codes and scales [channels], which are all the same with `one_scale`: then one is stored."""
    return StoredWeight(codes=codes, scale=scale[:1].reshape(()) if one_scale else scale, axis=axis)


def fp8_weight(values: npt.NDArray[np.float32], axis: int, stored: npt.DTypeLike) -> StoredWeight:
    """E4M3 with one scale per output channel, rounded to `stored`.

    Raises:
        ValueError: A scale overflows `stored`, or a value isn't finite.
    """
    scale = fp8_scale(amax_per_channel(values, axis), dtype=stored).astype(np.float32)
    return StoredWeight(codes=fp8_codes(values, scale, axis=axis), scale=scale, axis=axis)


def int4_weight(codes: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], axis: int, block: int) -> StoredWeight:
    """INT4 from codes [N, K], -8...7, and scales [N, K / block]; ONNX packs two codes into a byte."""
    found = StoredWeight(codes=codes.astype(ml_dtypes.int4), scale=scale, axis=0, block=block)
    return found if axis == 0 else found.turned()
