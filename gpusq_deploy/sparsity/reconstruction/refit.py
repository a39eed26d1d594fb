"""Masked least squares: the kept weights of a pruned Linear again, the mask as it is."""

from __future__ import annotations

import torch

from gpusq_deploy.sparsity.pruning.input_moments import Moments
from gpusq_deploy.sparsity.pruning.sparsegpt import damped, solve_kept


def refit_kept(
    weight: torch.Tensor, bias: torch.Tensor | None, moments: Moments, *, damping: float, steps: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """W and the bias that minimise Σ|y - W·x - b|² + ridge·|W - W₀|² over the kept places of every row.

    ridge = damping · mean(diag H), W₀ the present weights: what few images can't tell stays as it is. The normal
    equations of each row, restricted to its kept columns, are solved by conjugate gradients; K/2 steps are exact.

    Args:
        weight: W₀ [N, K] of the pruned layer, whose non-zeros are the kept places; not changed.
        bias: [N], or None.
        moments: Of the layer's inputs, with wanted outputs.
        damping: 0 or more.
        steps: Of conjugate gradients.

    Returns:
        The weight [N, K] and the bias [N], or None where the layer has none.
    """
    told = moments if bias is not None else moments.uncentred(None)
    assert told.cross is not None, "collected with wanted outputs"
    assert told.target_mean is not None, "collected with wanted outputs"
    gram = damped(told.gram, damping)
    cross = told.cross + weight @ (gram - told.gram)
    solved = solve_kept(weight, weight != 0, gram, cross, steps=steps)
    return solved, None if bias is None else told.target_mean - solved @ told.mean
