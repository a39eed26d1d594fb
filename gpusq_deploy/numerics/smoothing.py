"""Per-channel factors and offsets that make a layer's input easier to quantise, without changing the layer.

    x' = x / s - z / s        W' = W · diag(s)        b' = b + W·z        so that W'x' + b' = Wx + b

The factor s moves range from the activation's channels to the weight's columns (SmoothQuant, Xiao et al. 2022, arXiv
2211.10438). The offset z centres each channel (as in Outlier Suppression+, Wei et al. 2023, arXiv 2304.09145): a
symmetric quantiser then spends its codes on the range that is used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpusq_deploy.numerics.affine import scale_from_amax

Floats = npt.NDArray[np.float32]
_Any = npt.NDArray[np.floating[Any]]

_ALPHA = 0.6
_SMALLEST = float(np.finfo(np.float32).tiny)
_RARE_FLOOR = 0.2
_FAR_BEYOND = 2.0
_TINY = 1e-4


class Smoothing(NamedTuple):
    """s [K] > 0 and z [K]; `amax` is the range of x' where it is known beforehand, else None."""

    factor: Floats
    offset: Floats
    amax: float | None


def balanced(low: Floats, high: Floats, column_amax: Floats, *, centre: bool) -> Smoothing:
    """For channels that are in use in every sample, such as those of a LayerNorm.

    With r_j half the channel's range (or its largest magnitude, without an offset) and w_j = max_i |W_ij|:

        s_j = r_j^0.6 / w_j^0.4, scaled to a geometric mean of 1        z_j = (low_j + high_j) / 2

    Args:
        low: Smallest value of each channel [K] on the calibration data.
        high: Largest values [K].
        column_amax: w [K], over all layers that read the activation.
        centre: Whether an offset is possible.
    """
    offset, reach = _centred(low, high, centre=centre)
    return Smoothing(_shared(reach, column_amax, _ALPHA), offset, None)


def cautious(low: Floats, high: Floats, column_amax: Floats, *, centre: bool) -> Smoothing:
    """For means of values that an attention weighs: other images weigh others, and reach further in some channels.

    As `balanced`, but no channel counts as smaller than a fifth of the largest, R = max_j r_j, and less range moves:

        s_j = sqrt(max(r_j, R/5) / w_j), scaled to a geometric mean of 1

    Args:
        low: Smallest value of each channel [K] on the calibration data.
        high: Largest values [K].
        column_amax: w [K], over all layers that read the activation.
        centre: Whether an offset is possible.
    """
    offset, reach = _centred(low, high, centre=centre)
    return Smoothing(_shared(np.maximum(reach, _RARE_FLOOR * reach.max(initial=0)), column_amax, 0.5), offset, None)


def one_sided(low: Floats, high: Floats, *, headroom: float, centre: bool, stored: npt.DTypeLike) -> Smoothing:
    """For channels that fire rarely and in one direction, such as those of a GELU.

    A few dozen samples show some channels' peaks and miss others', so no channel counts as smaller than a fifth of the
    largest, R = max_j high_j. Where a few channels reach far beyond the others, as in CLIP's QuickGELUs (40 where the
    median is 1), a fifth of theirs would leave the others no steps: then it is of twice the 99th percentile, P, or of
    the lowest value's magnitude where hardly any channel fires, since low_j / s_j is part of the range:

        s_j = sqrt(max(high_j, min(R, max(2P, -min_j low_j))/5) / R)
        l = min(0, min_j(low_j / s_j))          h = (1 + headroom) · max(0, max_j(high_j / s_j))
        Δ = (h - l) / 254                       z_j = s_j · Δ · round((h + l) / 2Δ)

    z is a multiple of the step in x', so that 0 stays exactly representable: most values of a GELU are near it.

    Args:
        low: Smallest value of each channel [K] on the calibration data.
        high: Largest values [K].
        headroom: Relative room above the largest value.
        centre: Whether an offset is possible; without it z = 0 and the range is max(h, -l).
        stored: The type that holds the scale.
    """
    largest = max(float(high.max(initial=0.0)), _SMALLEST)
    usual = min(largest, max(_FAR_BEYOND * float(np.quantile(high, 0.99)), -float(low.min()), _SMALLEST))
    factor = np.sqrt(np.maximum(high, _RARE_FLOOR * usual) / largest).astype(np.float32)
    top = (1 + headroom) * max(float((high / factor).max()), 0.0)
    bottom = min(float((low / factor).min()), 0.0)
    if not centre:
        return Smoothing(factor, np.zeros_like(factor), max(top, -bottom))
    amax = (top - bottom) / 2
    step = float(scale_from_amax(amax, dtype=stored))
    offset = step * round((top + bottom) / (2 * step))
    return Smoothing(factor, (factor * offset).astype(np.float32), amax)


def _centred(low: Floats, high: Floats, *, centre: bool) -> tuple[Floats, Floats]:
    """The offsets z and reaches r; with `centre` False z = 0."""
    if not centre:
        return np.zeros_like(low), np.maximum(np.abs(low), np.abs(high))
    return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)


def _shared(reach: Floats, column_amax: Floats, alpha: float) -> Floats:
    """r^alpha / w^(1 - alpha), scaled to a geometric mean of 1."""
    logs = alpha * np.log(_lifted(reach)) - (1 - alpha) * np.log(_lifted(column_amax))
    factor: Floats = np.exp(logs - logs.mean()).astype(np.float32)
    return factor


def _lifted(values: _Any) -> npt.NDArray[np.float64]:
    """Values that are so small beside the largest that they would rule the factors, brought up."""
    least = max(_TINY * float(values.max(initial=0.0)), _SMALLEST)
    return np.maximum(values.astype(np.float64), least)
