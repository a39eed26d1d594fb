"""One-shot 2:4 pruning of one Linear: what may be asked for, and one function per method.

- `magnitude`: keep the two largest |w| of each group of four. Needs no data.
- `activation`: keep the two largest |w|·√E[x²]. Source: Wanda, Sun et al. 2023, arXiv 2306.11695.
- `second-order`: SparseGPT's choice and update, then the kept weights solved again; see `second_order`.

None of them trains: no gradient is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gpusq_deploy.artifacts import PruneMethod, Value
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import array_from_tensor
from gpusq_deploy.numerics import GROUP, magnitude_mask
from gpusq_deploy.sparsity.pruning.input_moments import Moments
from gpusq_deploy.sparsity.pruning.sparsegpt import damped, inverse_factor, prune_groups, solve_kept, unconstrained


class OneshotOptions(Value):
    """How to prune. docs/pruning.md has the equations.

    `damping`: ridge on H, relative to the mean of its diagonal. SparseGPT's 0.01 fits the calibration images and not
    others. `sequential`: a layer sees what the pruned layers before it produce, not what the dense ones did.
    `dense_targets`: with `sequential`, aim at the outputs of the dense model's layer on the dense model's inputs, which
    also makes up for earlier layers. `correct_bias`: give the bias that makes the mean output right, where the layer
    has a bias. `solve_steps`: conjugate-gradient steps on the kept weights. `token_share`: run the blocks on this share
    of each image's tokens, drawn with `seed`; 1 where the blocks need them all (see `chain.takes_any_tokens`).
    """

    method: PruneMethod = "second-order"
    damping: float = 0.2
    sequential: bool = True
    dense_targets: bool = True
    correct_bias: bool = True
    solve_steps: int = 2
    token_share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.damping < float("inf"):
            raise GpusqError(f"the damping must be positive and finite, not {self.damping}", place="OneshotOptions")
        if self.solve_steps < 0:
            raise GpusqError(f"solve_steps can't be negative, it is {self.solve_steps}", place="OneshotOptions")
        if not 0 < self.token_share <= 1:
            raise GpusqError(f"token_share must be in (0, 1], not {self.token_share}", place="OneshotOptions")


PLAIN_SPARSEGPT = OneshotOptions(damping=0.01, dense_targets=False, correct_bias=False, solve_steps=0, token_share=1)
"""The published method's settings, sequential as its authors run it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A pruned layer: `weight` [N, K], exactly 2:4, and `bias` [N], None where the layer has none.

    `error` is Σ|wanted - output|² / Σ|wanted|² on the calibration rows, both about their means where the bias was
    corrected; None by `magnitude`, which looks at no data.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    error: float | None


def solve_layer(
    weight: torch.Tensor, bias: torch.Tensor | None, moments: Moments | None, options: OneshotOptions
) -> Solution:
    """Prune one Linear.

    Args:
        weight: Dense W₀ [N, K], K a multiple of 4; not changed.
        bias: [N], or None.
        moments: Of the layer's inputs; `magnitude` makes no use of them.
        options: See `OneshotOptions`.

    Raises:
        GpusqError: The method needs data and there is none, K isn't a multiple of 4, or H can't be inverted.
    """
    if weight.ndim != 2 or weight.shape[1] % GROUP:
        raise GpusqError(f"2:4 needs a weight [N, K] with K a multiple of 4, not {list(weight.shape)}")
    dense = weight.detach()
    if options.method == "magnitude":
        return Solution(weight=_zeroed(dense, dense), bias=bias, error=None)
    if moments is None:
        raise GpusqError(f"the method {options.method} needs calibration images", hint="give --data")
    solve = _SOLVERS[options.method]
    if bias is None or not options.correct_bias:
        about_zero = moments.uncentred(bias)
        pruned = solve(dense, about_zero, options)
        return Solution(weight=pruned, bias=bias, error=_relative_error(dense, pruned, about_zero))
    pruned = solve(dense, moments, options)
    wanted = dense @ moments.mean + bias.detach() if moments.target_mean is None else moments.target_mean
    return Solution(weight=pruned, bias=wanted - pruned @ moments.mean, error=_relative_error(dense, pruned, moments))


def _relative_error(dense: torch.Tensor, pruned: torch.Tensor, moments: Moments) -> float:
    if moments.cross is None:
        change = pruned - dense
        error, power = _energy(change, change @ moments.gram), _energy(dense, dense @ moments.gram)
    else:
        power = moments.target_power
        error = _energy(pruned, pruned @ moments.gram - 2 * moments.cross) + power
    return max(error, 0.0) / power if power > 0 else 0.0


def _energy(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left * right).sum(dtype=torch.float64))


def _activation(weight: torch.Tensor, moments: Moments, _options: OneshotOptions) -> torch.Tensor:
    return _zeroed(weight, weight * moments.mean_square.sqrt())


def _second_order(weight: torch.Tensor, moments: Moments, options: OneshotOptions) -> torch.Tensor:
    gram = damped(moments.gram, options.damping)
    factor = inverse_factor(gram)
    # The ridge pulls towards the dense weights, not towards zero: C gets the ridge · W₀ that H's ridge asks for.
    cross = weight @ gram if moments.cross is None else moments.cross + weight @ (gram - moments.gram)
    dense = weight if moments.cross is None else unconstrained(weight, cross, gram, factor)
    pruned = prune_groups(dense, factor)
    return solve_kept(pruned, pruned != 0, gram, cross, steps=options.solve_steps)


_SOLVERS: Mapping[PruneMethod, Callable[[torch.Tensor, Moments, OneshotOptions], torch.Tensor]] = {
    "activation": _activation,
    "second-order": _second_order,
}


def _zeroed(weight: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
    kept = torch.from_numpy(magnitude_mask(array_from_tensor(saliency.cpu().float()))).to(weight.device)
    return weight.masked_fill(~kept, 0.0)
