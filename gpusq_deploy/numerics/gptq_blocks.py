"""Round a weight to INT4 in blocks so that the layer's output moves least, instead of each weight.

As `numerics.rounding` does for INT8, with a scale for each block of inputs that is found beforehand and kept ("static
groups"), so that columns may go in any order: with H = (I + U) D (I + U)ᵀ, U strictly upper triangular, and the errors
E = W - sq of the columns before (Frantar et al. 2022, arXiv 2210.17323; Chee et al. 2023, arXiv 2307.13304, theorem 6):

    q_k = clip(round((W_k + Σ_{j<k} E_j·U_jk) / s_k), -8, 7)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpusq_deploy.numerics.low_bit import INT4_MAX, INT4_MIN, int4_blocks

# Columns whose errors reach each other at once; what lies behind gets them as one product.
_TOGETHER = 32

Floats = npt.NDArray[np.floating[Any]]


def second_order_int4(
    rows: Floats, block: int, gram: Floats, *, damping: float, dtype: npt.DTypeLike = np.float32
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Codes q [N, K] in -8…7 and scales [N, K / block] that nearly minimise tr((W - sq) H (W - sq)ᵀ).

    Scales are those of `int4_blocks`. Columns go by falling input power. Zeros of W keep the code 0, so that a 2:4
    pattern stays.

    Args:
        rows: W [N, K], K a multiple of `block`.
        block: Consecutive inputs that share a scale.
        gram: H [K, K], symmetric, positive semi-definite: second moments of the layer's inputs.
        damping: Added to H's diagonal, relative to its mean.
        dtype: The type that scales are rounded to.

    Raises:
        ValueError: H is not positive definite, even with the damping; or see `int4_blocks`.
    """
    _, scale = int4_blocks(rows, block, dtype=dtype)
    order = np.argsort(-gram.diagonal(), kind="stable")
    feedback = _feedback(gram[np.ix_(order, order)], damping)
    wanted = np.ascontiguousarray(rows.T[order], dtype=np.float32)
    divisor = np.repeat(scale, block, axis=1).T[order]
    codes, errors = np.empty_like(wanted), np.empty_like(wanted)
    for start in range(0, len(order), _TOGETHER):
        stop = min(start + _TOGETHER, len(order))
        values = wanted[start:stop] + feedback[:start, start:stop].T @ errors[:start]
        for column in range(start, stop):
            code = np.clip(np.rint(values[column - start] / divisor[column]), INT4_MIN, INT4_MAX)
            codes[column] = np.where(wanted[column] == 0, 0, code)
            errors[column] = wanted[column] - codes[column] * divisor[column]
            values[column + 1 - start :] += feedback[column, column + 1 : stop, None] * errors[column]
    result = np.empty(codes.shape, np.int8)
    result[order] = codes
    return np.ascontiguousarray(result.T), scale


def _feedback(gram: Floats, damping: float) -> npt.NDArray[np.float32]:
    """U above the diagonal, with H + ridge = (I + U) D (I + U)ᵀ."""
    damped = gram.astype(np.float64)
    smallest = float(np.finfo(np.float32).tiny)
    damped[np.diag_indices_from(damped)] += damping * max(float(np.trace(gram)) / len(gram), smallest)
    try:
        # The Cholesky factor of H with its axes reversed, reversed again, is upper triangular.
        upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError as error:
        raise ValueError("the second moments are not positive definite") from error
    return np.ascontiguousarray(upper / upper.diagonal(), dtype=np.float32)
