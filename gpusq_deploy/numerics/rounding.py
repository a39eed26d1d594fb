"""Round a weight to INT8 so that the layer's output moves least, instead of each weight.

Column after column is rounded, and the columns that are still free make up for the error: GPTQ, Frantar et al. 2022,
arXiv 2210.17323, which is optimal brain surgery in a fixed order. Columns go by falling input power, so that those that
matter most are rounded while most others are still free.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpusq_deploy.numerics.affine import INT8_MAX, Int8Array

_BLOCK = 64

Floats = npt.NDArray[np.floating[Any]]


def second_order_codes(rows: Floats, scale: Floats, gram: Floats, *, damping: float) -> Int8Array:
    """Codes q [N, K] in -127…127 that nearly minimise tr((W - sq) H (W - sq)ᵀ).

    Zeros of W keep the code 0, so that a 2:4 pattern stays.

    Args:
        rows: W [N, K].
        scale: s [N] > 0.
        gram: H [K, K], symmetric, positive semi-definite: second moments of the layer's inputs.
        damping: Added to H's diagonal, relative to its mean.

    Raises:
        ValueError: H is not positive definite, even with the damping.
    """
    order = np.argsort(-gram.diagonal(), kind="stable")
    factor = _inverse_factor(gram[np.ix_(order, order)], damping)
    rest = np.ascontiguousarray(rows.T[order], dtype=np.float32)
    frozen = rest == 0
    divisor = scale.astype(np.float32)
    codes = np.empty(rest.shape, np.int8)
    width = len(order)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        errors = np.empty((stop - start, rest.shape[1]), np.float32)
        for column in range(start, stop):
            values = rest[column]
            rounded = np.clip(np.rint(values / divisor), -INT8_MAX, INT8_MAX)
            rounded[frozen[column]] = 0
            codes[column] = rounded
            error = (values - rounded * divisor) / factor[column, column]
            errors[column - start] = error
            rest[column + 1 : stop] -= factor[column, column + 1 : stop, None] * error
        rest[stop:] -= factor[start:stop, stop:].T @ errors
    result = np.empty_like(codes)
    result[order] = codes
    return np.ascontiguousarray(result.T)


def _inverse_factor(gram: Floats, damping: float) -> npt.NDArray[np.float32]:
    """Upper triangular U with (H + ridge)⁻¹ = UᵀU, float32 [K, K]."""
    damped = gram.astype(np.float64)
    diagonal = np.einsum("ii->i", damped)
    diagonal += damping * max(float(diagonal.mean()), float(np.finfo(np.float32).tiny))
    try:
        # H reversed = L Lᵀ, so L⁻¹ reversed in both axes is upper triangular, and UᵀU is the inverse of H.
        lower = np.linalg.cholesky(damped[::-1, ::-1])
    except np.linalg.LinAlgError as error:
        raise ValueError("the second moments are not positive definite") from error
    upper = np.linalg.inv(lower)[::-1, ::-1]
    return np.ascontiguousarray(np.triu(upper), dtype=np.float32)
