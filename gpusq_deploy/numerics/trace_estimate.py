"""Sums over what a matrix makes of random vectors, estimated with a few random signs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_PROBES = 64

Floats = npt.NDArray[np.floating[Any]]


def spread(rows: Floats, covariance: Floats) -> float:
    """E|A(x - E x)|² = tr(A C Aᵀ): exact for at most 64 rows of A, else an estimate, always the same one.

    With z of random signs, E (zᵀA) C (zᵀA)ᵀ = tr(A C Aᵀ) (Hutchinson 1989, Commun. Stat. Simul. Comput. 18). Its
    standard deviation over 64 of them is at most 18 % of the trace, and less the more directions A x varies in.

    Args:
        rows: A [N, K].
        covariance: C [K, K] of x, symmetric, positive semi-definite.
    """
    probes, weight = rows.astype(np.float32), 1.0
    if len(rows) > _PROBES:
        signs = 2 * np.random.default_rng(0).integers(0, 2, (_PROBES, len(rows))) - 1
        probes, weight = signs.astype(np.float32) @ probes, 1 / _PROBES
    sums = np.einsum("nk,nk->", probes @ covariance.astype(np.float32, copy=False), probes, dtype=np.float64)
    return max(weight * float(sums), 0.0)
