"""Symmetric INT8 quantisation, as ONNX QuantizeLinear and DequantizeLinear define it.

    q = clip(round_half_even(x / scale), -128, 127)        x' = q · scale        zero point 0

with scale = amax / 127, so that ±amax both have an exact code. Weights use -127…127, as TensorRT's own INT8 kernels
do. Scales are rounded to the type that the graph stores (FP16 where the float type is FP16) *before* values are divided
by them, so the stored integers belong to the stored scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
Int8Array = npt.NDArray[np.int8]

INT8_MAX = 127


def scale_from_amax(amax: npt.ArrayLike, *, dtype: npt.DTypeLike = np.float32) -> FloatArray:
    """Scale of a symmetric INT8 range, in the type that will be stored.

    A zero range (a dead channel) gets scale 1, so that its zeros stay zeros. A scale is rounded up where rounding it
    to nearest would put amax more than half a step beyond the last code: among the subnormal numbers of `dtype`.

    Args:
        amax: Largest magnitude, any shape, not negative, finite.
        dtype: A floating type of numpy or ml_dtypes.

    Returns:
        Positive finite scales of `amax`'s shape.

    Raises:
        ValueError: amax is negative or not finite, or the scale overflows `dtype`.
    """
    ranges = np.asarray(amax, dtype=np.float64)
    if not np.isfinite(ranges).all() or (ranges < 0).any():
        raise ValueError("amax must be finite and not negative")
    with np.errstate(over="ignore"):
        stored = np.asarray(ranges / INT8_MAX).astype(dtype)
    if not np.isfinite(stored.astype(np.float64)).all():
        raise ValueError(f"the scale of amax {ranges.max():.6g} overflows {np.dtype(dtype).name}")
    clips = ranges > (INT8_MAX + 0.5) * stored.astype(np.float64)
    positive = np.where(clips, np.nextafter(stored, np.asarray(1, stored.dtype)), stored)
    scales: FloatArray = np.where(ranges == 0, np.asarray(1, stored.dtype), positive).astype(stored.dtype)
    return scales


def amax_per_channel(weight: FloatArray, axis: int) -> FloatArray:
    """Largest magnitude along every axis but `axis`: shape [weight.shape[axis]], float32."""
    others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    largest: FloatArray = np.max(np.abs(weight), axis=others, initial=0).astype(np.float32)
    return largest


def weight_scales(
    weight: FloatArray, axis: int, *, dtype: npt.DTypeLike, one_scale: bool = False
) -> npt.NDArray[np.float32]:
    """Float32 scales [weight.shape[axis]] of a weight's channels that `dtype` can hold; with `one_scale` all the same.

    Raises:
        ValueError: See `scale_from_amax`.
    """
    amax = amax_per_channel(weight, axis)
    return scale_from_amax(np.full_like(amax, amax.max()) if one_scale else amax, dtype=dtype).astype(np.float32)


def quantize(values: FloatArray, scale: FloatArray, *, axis: int | None = None, lowest: int = -INT8_MAX) -> Int8Array:
    """INT8 codes in -127…127, or from `lowest`, of `values` [any shape] for one scale, or one per index of `axis`."""
    divisor = _aligned(scale, values.ndim, axis).astype(np.float32)
    codes = np.rint(values.astype(np.float32) / divisor)
    clipped: Int8Array = np.clip(codes, lowest, INT8_MAX).astype(np.int8)
    return clipped


def dequantize(codes: Int8Array, scale: FloatArray, *, axis: int | None = None) -> npt.NDArray[np.float32]:
    """Float32 values of INT8 codes; see `quantize`."""
    factor = _aligned(scale, codes.ndim, axis).astype(np.float32)
    return codes.astype(np.float32) * factor


def _aligned(scale: FloatArray, ndim: int, axis: int | None) -> FloatArray:
    if axis is None:
        return scale.reshape(())
    shape = [1] * ndim
    shape[axis] = -1
    return scale.reshape(shape)
