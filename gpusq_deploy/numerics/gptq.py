"""Round a weight to INT8 so that the layer's output moves least, instead of each weight.

Column after column is rounded, and the columns that are still free make up for the error: GPTQ, Frantar et al. 2022,
arXiv 2210.17323, in the form of Chee et al. 2023, arXiv 2307.13304 (theorem 6), which gives the same codes and needs no
inverse. With H = (I + U) D (I + U)ᵀ, U strictly upper triangular, and the errors E = W - sq of the columns before:

    q_k = round((W_k + Σ_{j<k} E_j·U_jk) / s)

Columns go by falling input power, so that those that matter most are rounded while most others are still free.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpusq_deploy.numerics.affine import INT8_MAX, Int8Array

_BLOCK = 32

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
    feedback = _feedback(gram[np.ix_(order, order)], damping)
    # In steps: of an output channel's errors all have its scale in common.
    wanted = np.ascontiguousarray((rows / scale[:, None]).T[order], dtype=np.float32)
    kept = wanted != 0
    sparse = not kept.all()
    errors = np.empty_like(wanted)
    for start in range(0, len(order), _BLOCK):
        stop = min(start + _BLOCK, len(order))
        values = wanted[start:stop] + feedback[:start, start:stop].T @ errors[:start]
        for column in range(start, stop):
            value = values[column - start]
            value += feedback[start:column, column] @ errors[start:column]
            np.rint(value, out=value)
            np.minimum(np.maximum(value, -INT8_MAX, out=value), INT8_MAX, out=value)
            if sparse:
                value *= kept[column]
            np.subtract(wanted[column], value, out=errors[column])
    result = np.empty(wanted.shape, np.int8)
    result[order] = np.rint(wanted - errors)
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
