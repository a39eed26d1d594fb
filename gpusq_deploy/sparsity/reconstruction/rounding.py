"""Round a Linear's kept weights to what INT8 holds, so that its outputs change least.

On the grid s_n · {-127 … 127} of row n, s_n = max|w_n| / 127, find Ŵ with a small

    E(Ŵ) = tr((Ŵ - W) H (Ŵ - W)ᵀ)

by coordinate descent from the nearest values: each column in turn takes the values of its grid that are best with the
others as they are, those nearest to ŵ_j - ((Ŵ - W) H)_j / H_jj. No step raises the error of any row.
"""

from __future__ import annotations

import torch

from gpusq_deploy.numerics import INT8_MAX
from gpusq_deploy.sparsity.pruning.torch_threads import one_thread

_BLOCK = 64


def round_kept(weight: torch.Tensor, gram: torch.Tensor, *, sweeps: int = 2) -> torch.Tensor:
    """The weight on its grid. Zeros stay zero, and the largest of each row stays, so that its grid is the same again.

    Args:
        weight: W [N, K], float32; not changed.
        gram: H [K, K], positive definite.
        sweeps: Over all columns; 0 rounds to nearest.

    Returns:
        Ŵ [N, K], each value s_n times an integer.
    """
    columns = weight.T.contiguous()
    largest = columns.abs().amax(dim=0)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / INT8_MAX
    free = (columns != 0) & (columns.abs() < largest)
    rounded = torch.where(free, (columns / scale).round() * scale, columns)
    residual = gram @ (rounded - columns)
    with one_thread():
        for start in [*range(0, len(columns), _BLOCK)] * sweeps:
            stop = min(start + _BLOCK, len(columns))
            steps = torch.zeros_like(columns[start:stop])
            for column in range(start, stop):
                best = rounded[column] - residual[column] / gram[column, column]
                grid = (best / scale).round().clamp(-INT8_MAX, INT8_MAX) * scale
                step = torch.where(free[column], grid - rounded[column], 0.0)
                residual[start:stop].addr_(gram[start:stop, column], step)
                rounded[column] += step
                steps[column - start] = step
            residual[:start].addmm_(gram[:start, start:stop], steps)
            residual[stop:].addmm_(gram[stop:, start:stop], steps)
    return rounded.T.contiguous()
