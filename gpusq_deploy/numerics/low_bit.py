"""FP8 and INT4, as ONNX QuantizeLinear and DequantizeLinear define them.

    FP8   q = E4M3(clip(x / scale, -448, 448))           x' = q · scale        scale = amax / 448
    INT4  q = clip(round_half_even(w / scale), -8, 7)    w' = q · scale        one scale for each channel and block

E4M3 (Micikevicius et al., FP8 formats for deep learning, arXiv 2209.05433; ONNX's FLOAT8E4M3FN) has three bits of
mantissa, no infinity, and ends at 448. Scales are rounded to the type that the graph stores before values are divided
by them. A zero has the code 0 in both, so a 2:4 pattern stays.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gpusq_deploy.numerics.affine import INT8_MAX, scale_from_amax

FloatArray = npt.NDArray[np.floating[Any]]

FP8_MAX = 448
INT4_MIN, INT4_MAX = -8, 7

# Of a block's largest magnitude / 7: one octave down. Below half of it, clipping costs more (over 0.25 amax²) than
# finer steps save on average (up to 127 · (amax/7)² / 12 = 0.22 amax² in a block of 128).
_SHARES = 2.0 ** (-np.arange(33) / 32)
# Values looked at together: they and three copies stay in a core's cache.
_AT_ONCE = 1 << 16


def fp8_scale(amax: npt.ArrayLike, *, dtype: npt.DTypeLike = np.float32) -> FloatArray:
    """Scale of a symmetric E4M3 range, in the type that will be stored; 1 where amax is 0.

    Args:
        amax: Largest magnitude, any shape, not negative, finite.
        dtype: A floating type of numpy or ml_dtypes.

    Raises:
        ValueError: amax is negative or not finite, or the scale overflows `dtype`.
    """
    return scale_from_amax(np.asarray(amax, np.float64) * (INT8_MAX / FP8_MAX), dtype=dtype)


def fp8_codes(values: FloatArray, scale: FloatArray, *, axis: int | None = None) -> npt.NDArray[Any]:
    """E4M3 codes (ml_dtypes.float8_e4m3fn) of `values` for one scale, or one per index of `axis`."""
    divisor = scale.astype(np.float32)
    if axis is not None:
        divisor = divisor.reshape([-1 if index == axis % values.ndim else 1 for index in range(values.ndim)])
    codes: npt.NDArray[Any] = np.clip(values.astype(np.float32) / divisor, -FP8_MAX, FP8_MAX)
    return codes.astype(ml_dtypes.float8_e4m3fn)


def int4_scale(amax: npt.ArrayLike, *, dtype: npt.DTypeLike = np.float32) -> FloatArray:
    """Scale of a symmetric INT4 range, ±7, in the type that will be stored; see `fp8_scale`.

    Raises:
        ValueError: amax is negative or not finite, or the scale overflows `dtype`.
    """
    return scale_from_amax(np.asarray(amax, np.float64) * (INT8_MAX / INT4_MAX), dtype=dtype)


def int4_codes(rows: FloatArray, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """INT4 codes [N, K] of a weight for scales [N, K / block]."""
    blocks = np.ascontiguousarray(rows, dtype=np.float32).reshape(scale.size, -1)
    return _int4_codes(blocks, scale.reshape(-1)).astype(np.int8).reshape(rows.shape)


def int4_blocks(
    rows: FloatArray, block: int, *, dtype: npt.DTypeLike = np.float32
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Codes and scales of a weight in blocks along its inputs; each scale is the best of 33 by squared error.

        scale = argmin over s in {amax/7 · 2^(-j/32), j = 0…32} of Σ (w - s · clip(round(w / s), -8, 7))²

    Args:
        rows: [N, K] with K a multiple of `block`, finite.
        block: Consecutive inputs that share a scale.
        dtype: The type that scales are rounded to.

    Returns:
        Codes [N, K], -8…7, and scales [N, K / block] with values of `dtype`; a block of zeros has scale 1.

    Raises:
        ValueError: K is no multiple of `block`, or a scale overflows `dtype`.
    """
    if rows.ndim != 2 or rows.shape[1] % block:
        raise ValueError(f"the weight {list(rows.shape)} has no blocks of {block} along its inputs")
    blocks = np.ascontiguousarray(rows, dtype=np.float32).reshape(-1, block)
    codes = np.empty(blocks.shape, np.int8)
    scales = np.empty(len(blocks), np.float32)
    step = max(1, _AT_ONCE // block)
    for start in range(0, len(blocks), step):
        piece = slice(start, start + step)
        codes[piece], scales[piece] = _best(blocks[piece], dtype)
    return codes.reshape(rows.shape), scales.reshape(len(rows), -1)


def _best(
    blocks: npt.NDArray[np.float32], dtype: npt.DTypeLike
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    # In units of INT8's 127 codes, for `scale_from_amax` knows how scales are rounded and what overflows.
    ranges = np.max(np.abs(blocks), axis=1).astype(np.float64) * (INT8_MAX / INT4_MAX)
    best = scale_from_amax(ranges, dtype=dtype).astype(np.float32)
    least = _errors(blocks, best)
    for share in _SHARES[1:]:
        scale = scale_from_amax(ranges * share, dtype=dtype).astype(np.float32)
        errors = _errors(blocks, scale)
        better = errors < least
        best[better], least[better] = scale[better], errors[better]
    return _int4_codes(blocks, best).astype(np.int8), best


def _errors(blocks: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    difference = _int4_codes(blocks, scale)
    difference *= scale[:, None]
    difference -= blocks
    errors: npt.NDArray[np.float32] = np.einsum("bk,bk->b", difference, difference)
    return errors


def _int4_codes(blocks: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    codes = blocks / scale[:, None]
    np.rint(codes, out=codes)
    np.clip(codes, INT4_MIN, INT4_MAX, out=codes)
    return codes
