"""Round a weight so that the layer's output moves least, instead of each weight.

Column after column is rounded, and the columns that are still free make up for the error: GPTQ, Frantar et al. 2022,
arXiv 2210.17323, in the form of Chee et al. 2023, arXiv 2307.13304 (theorem 6), which gives the same codes and needs no
inverse. With H = (I + U) D (I + U)ᵀ, U strictly upper triangular, and the errors E = W - sq of the columns before:

    q_k = clip(round((W_k + Σ_{j<k} E_j·U_jk) / s_k))

Columns go by falling input power, so that those that matter most are rounded while most others are still free. INT4's
scales, one per block of inputs, are found beforehand and kept ("static groups"), so that columns may go in any order.
Zeros of W keep the code 0, so that a 2:4 pattern stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpusq_deploy.numerics.affine import INT8_MAX, Int8Array
from gpusq_deploy.numerics.low_bit import INT4_MAX, INT4_MIN, int4_blocks

# Columns whose errors reach each other at once; what lies behind gets them as one product.
_BLOCK = 32

Floats = npt.NDArray[np.floating[Any]]


def second_order_codes(rows: Floats, scale: Floats, gram: Floats, *, damping: float) -> Int8Array:
    """Codes q [N, K] in -127…127 that nearly minimise tr((W - sq) H (W - sq)ᵀ).

    Args:
        rows: W [N, K].
        scale: s [N] > 0.
        gram: H [K, K], symmetric, positive semi-definite: second moments of the layer's inputs.
        damping: Added to H's diagonal, relative to its mean.

    Raises:
        ValueError: H is not positive definite, even with the damping.
    """
    # In steps: of an output channel's errors all have its scale in common.
    return _codes(rows / scale[:, None], None, gram, damping, (-INT8_MAX, INT8_MAX))


def second_order_int4(
    rows: Floats, block: int, gram: Floats, *, damping: float, dtype: npt.DTypeLike = np.float32
) -> tuple[Int8Array, npt.NDArray[np.float32]]:
    """Codes q [N, K] in -8…7 and scales [N, K / block], those of `int4_blocks`; see `second_order_codes`.

    Args:
        rows: W [N, K], K a multiple of `block`.
        block: Consecutive inputs that share a scale.
        gram: H [K, K].
        damping: Added to H's diagonal, relative to its mean.
        dtype: The type that scales are rounded to.

    Raises:
        ValueError: H is not positive definite, even with the damping; or see `int4_blocks`.
    """
    _, scale = int4_blocks(rows, block, dtype=dtype)
    return _codes(rows, np.repeat(scale, block, axis=1), gram, damping, (INT4_MIN, INT4_MAX)), scale


def _codes(rows: Floats, steps: Floats | None, gram: Floats, damping: float, limits: tuple[int, int]) -> Int8Array:
    """Codes of W [N, K] with a step for each weight, [N, K]; None: all are 1."""
    order = np.argsort(-gram.diagonal(), kind="stable")
    feedback = _feedback(gram[np.ix_(order, order)], damping)
    wanted = np.ascontiguousarray(rows.T[order], dtype=np.float32)
    divisor = None if steps is None else steps.T[order]
    kept = wanted != 0
    codes, errors = np.empty_like(wanted), np.empty_like(wanted)
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        values = wanted[start:stop] + feedback[:start, start:stop].T @ errors[:start]
        for column in range(start, stop):
            value, code = values[column - start], codes[column]
            value += feedback[start:column, column] @ errors[start:column]
            np.rint(value if divisor is None else value / divisor[column], out=code)
            np.minimum(np.maximum(code, limits[0], out=code), limits[1], out=code)
            code *= kept[column]
            np.subtract(wanted[column], code if divisor is None else code * divisor[column], out=errors[column])
    result = np.empty(codes.shape, np.int8)
    result[order] = codes
    return np.ascontiguousarray(result.T)


def _feedback(gram: Floats, damping: float) -> npt.NDArray[np.float32]:
    """Strictly upper triangular U with H + ridge = (I + U) D (I + U)ᵀ, float32 [K, K]; its diagonal is left at 1."""
    damped = gram.astype(np.float64)
    diagonal = np.einsum("ii->i", damped)
    diagonal += damping * max(float(diagonal.mean()), float(np.finfo(np.float32).tiny))
    try:
        # H reversed = L Lᵀ, so L reversed in both axes is upper triangular, and H = L' L'ᵀ.
        lower = np.linalg.cholesky(damped[::-1, ::-1])
    except np.linalg.LinAlgError as error:
        raise ValueError("the second moments are not positive definite") from error
    upper = lower[::-1, ::-1]
    return np.ascontiguousarray(upper / upper.diagonal(), dtype=np.float32)
