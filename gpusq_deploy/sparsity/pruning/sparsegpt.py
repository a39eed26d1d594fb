"""2:4 pruning of one matrix by second-order information: choose weights, make up for their loss, solve again.

All of it minimises, over W [N, K] with at most two non-zeros per group of four,

    E(W) = tr((W - W*) H (W - W*)ᵀ)        H [K, K] positive definite

`prune_groups` is SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774: the groups are visited from the first to the
last, and what is lost in one is made up for in the later ones) with one difference: SparseGPT scores the four weights
of a group one by one; here the best of the six pairs is taken by its exact joint error, so that the two kept weights
of the group make up for the loss as well. `solve_kept` then minimises E exactly for the pattern that was found.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.numerics import GROUP
from gpusq_deploy.sparsity.pruning.torch_threads import one_thread

_PAIRS = tuple(combinations(range(GROUP), 2))
_BLOCK = 64
_TINY = 1e-30


def damped(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """H + damping · mean(diag H) · I; a layer whose inputs never vary gets I."""
    scale = float(gram.diagonal().double().mean())
    ridge = damping * scale if scale > 0 else 1.0
    return gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def inverse_factor(gram: torch.Tensor) -> torch.Tensor:
    """The upper triangular U [K, K] with H⁻¹ = UᵀU, float64.

    The trailing block of U from column j on is the same factor of the inverse of H's trailing block: what is needed
    after the columns before j are fixed.

    Raises:
        GpusqError: H is not positive definite.
    """
    # H reversed = L Lᵀ, so H⁻¹ reversed = (L⁻¹)ᵀ L⁻¹, and L⁻¹ reversed in both axes is upper triangular.
    reversed_gram = gram.double().flip(0, 1)
    solver: Any = torch.linalg  # it ships no types
    lower, failed = solver.cholesky_ex(reversed_gram)
    if int(failed):
        raise GpusqError("the second moments are not positive definite", hint="raise the damping")
    identity = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    inverse: torch.Tensor = solver.solve_triangular(lower, identity, upper=False)
    return inverse.flip(0, 1)


def unconstrained(weight: torch.Tensor, cross: torch.Tensor, gram: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """W* = W₀ + (C - W₀H) H⁻¹ [N, K]: the dense minimum, with H damped and C including the same ridge · W₀."""
    upper = factor.float()
    return weight + (cross - weight @ gram) @ upper.T @ upper


class _Pairs(NamedTuple):
    """For each group of four: its block of U [G, 4, 4], and (H⁻¹ on a pair)⁻¹ for the six pairs [G, 24, 4]."""

    upper: torch.Tensor
    inverse: torch.Tensor


def prune_groups(weight: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Prune W* to 2:4; see the module.

    In a group, with V = (H of this and all later columns)⁻¹, zeroing the pair p costs w_p (V_pp)⁻¹ w_pᵀ, and the best
    update of all those columns is -w_p (V_pp)⁻¹ V_p.

    Args:
        weight: W* [N, K], float32, K a multiple of 4.
        factor: `inverse_factor` of H.

    Returns:
        A new matrix [N, K] with exactly two zeroed places in every group.
    """
    count, width = weight.shape
    pairs = _pairs(factor)
    upper = factor.float()
    rest = weight.T.contiguous()
    places = torch.tensor(_PAIRS, device=weight.device)
    with one_thread():
        # Later blocks are brought up to date once per block: few large products instead of many thin ones.
        for start in range(0, width, _BLOCK):
            stop = min(start + _BLOCK, width)
            errors = weight.new_empty(stop - start, count)
            for column in range(start, stop, GROUP):
                group, here = column // GROUP, slice(column, column + GROUP)
                step = errors[column - start : column - start + GROUP]
                pruned, loss = _best_pair(rest[here], pairs.inverse[group])
                torch.mm(pairs.upper[group], loss, out=step)
                rest[column:stop].addmm_(upper[here, column:stop].T, step, alpha=-1)
                rest[here].scatter_(0, places[pruned].T, 0.0)
            rest[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return rest.T.contiguous()


def _best_pair(weights: torch.Tensor, inverse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For weights [4, N]: the cheapest pair [N], and (V_pp)⁻¹ w_p in its places [4, N], zero elsewhere."""
    count = weights.shape[1]
    candidates = (inverse @ weights).view(len(_PAIRS), GROUP, count)
    pruned = (candidates * weights).sum(dim=1).argmin(dim=0)
    loss = candidates.gather(0, pruned.view(1, 1, count).expand(1, GROUP, count))[0]
    return pruned, loss


def _pairs(factor: torch.Tensor) -> _Pairs:
    groups = len(factor) // GROUP
    blocks = factor.view(groups, GROUP, groups, GROUP).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    covariance = blocks.transpose(1, 2) @ blocks
    inverse = factor.new_zeros(groups, len(_PAIRS), GROUP, GROUP)
    for index, (first, second) in enumerate(_PAIRS):
        a, b, c = covariance[:, first, first], covariance[:, first, second], covariance[:, second, second]
        determinant = a * c - b * b
        inverse[:, index, first, first] = c / determinant
        inverse[:, index, second, second] = a / determinant
        inverse[:, index, first, second] = inverse[:, index, second, first] = -b / determinant
    return _Pairs(blocks.float().contiguous(), inverse.view(groups, -1, GROUP).float())


def solve_kept(
    weight: torch.Tensor, kept: torch.Tensor, gram: torch.Tensor, cross: torch.Tensor, *, steps: int
) -> torch.Tensor:
    """Minimise tr(W H Wᵀ) - 2 tr(W Cᵀ) over the kept places of every row by conjugate gradients.

    The diagonal of H preconditions. Every step lowers the error of every row; K/2 steps would be exact, and a few are
    enough from where `prune_groups` ends.

    Args:
        weight: Where to start [N, K], zero outside `kept`.
        kept: Booleans [N, K].
        gram: H [K, K], positive definite.
        cross: C [N, K].
        steps: 0 returns `weight`.
    """
    mask = kept.to(weight.dtype)
    scale = 1 / gram.diagonal()
    residual = (cross - weight @ gram) * mask
    direction = residual * scale
    energy = (residual * direction).sum(dim=1, keepdim=True)
    solution = weight
    for _ in range(steps):
        image = (direction @ gram) * mask
        length = energy / (direction * image).sum(dim=1, keepdim=True).clamp_min(_TINY)
        solution = solution + length * direction
        residual = residual - length * image
        scaled = residual * scale
        next_energy = (residual * scaled).sum(dim=1, keepdim=True)
        direction = scaled + next_energy / energy.clamp_min(_TINY) * direction
        energy = next_energy
    return solution
