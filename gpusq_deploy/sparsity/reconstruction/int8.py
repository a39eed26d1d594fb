"""Reconstruction in INT8: block by block, the quantised sparse model learns the dense one's stream.

The same passes over the blocks as in float (`reconstruct`), in the arithmetic of the Q/DQ graph (`training.qat`): each
layer is given what INT8 holds of its inputs, by scales that stay as observed. Its kept weights are solved again for
these (`refit`), then rounded so that the outputs change least (`rounding`); the bias follows.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import cast

import torch

from gpusq_deploy.artifacts import Value
from gpusq_deploy.sparsity.pruning.input_moments import Moments
from gpusq_deploy.sparsity.pruning.sparsegpt import damped
from gpusq_deploy.sparsity.reconstruction.one_block import Fit, Pair, Streams, fit_block, stream_error
from gpusq_deploy.sparsity.reconstruction.plan import Data, Plan, ReconstructOptions, planned, store
from gpusq_deploy.sparsity.reconstruction.refit import refit_kept
from gpusq_deploy.sparsity.reconstruction.rounding import round_kept
from gpusq_deploy.sparsity.training.qat import InputScales, fake_quantized, quantized_input


class Int8Reconstruction(Value):
    """Scores on the held-out images in INT8, rounded to nearest and reconstructed, and whether the latter is `kept`.

    `layers` were fitted; `fitted` is the relative error behind the last block on the images of the fit.
    """

    layers: tuple[str, ...]
    kept: bool
    rounded: tuple[float, ...]
    reconstructed: tuple[float, ...]
    fitted: float


def reconstruct_int8(
    pair: Pair, scales: InputScales, data: Data, options: ReconstructOptions, say: Callable[[str], None]
) -> tuple[torch.nn.Module, Int8Reconstruction]:
    """Fit the model in INT8 to the dense one; never worse on the held-out images than rounding to nearest.

    Args:
        pair: The dense model, and the sparse float one to start from; neither is changed.
        scales: Of the inputs of the layers that are INT8; they stay.
        data: Unlabelled images, and what scores a model; `held_out` isn't used.
        options: See `ReconstructOptions`; one pass is made.
        say: Hears the error of each block and the time left.

    Returns:
        The better model, of float weights on their grids where it was fitted, and what was done.

    Raises:
        GpusqError: The model has no chain of blocks that holds one of the layers, or inputs that aren't finite.
    """
    layers = [layer for layer in scales.logarithms if isinstance(pair.student.get_submodule(layer), torch.nn.Linear)]
    plan = planned(pair.teacher, layers, data.images, options, say)
    work, best = Pair(teacher=pair.teacher, student=copy.deepcopy(pair.student)), copy.deepcopy(pair.student)
    with fake_quantized(work.student, scales):
        before = data.quality(work.student)
        fitted = _one_pass(plan, work, scales, plan.tokens_in(work.student, data.images))
        after = data.quality(work.student)
    report = Int8Reconstruction(
        layers=tuple(layer for joins in plan.joins.values() for layer in joins),
        kept=after > before,
        rounded=before,
        reconstructed=after,
        fitted=fitted,
    )
    return (work.student if report.kept else best), report


def _one_pass(plan: Plan, pair: Pair, scales: InputScales, tokens: torch.Tensor) -> float:
    """Fit every block in its order; the relative error behind the last on the images of the fit."""

    def reading(layer: str, inputs: torch.Tensor) -> torch.Tensor:
        return quantized_input(inputs.float(), scales.logarithms[layer].detach().exp())

    fit, streams = _fitting(plan, pair), Streams(dense=plan.tokens, sparse=tokens)
    error, begun, count = 0.0, time.perf_counter(), len(plan.chain.blocks)
    for done, block in enumerate(plan.chain.blocks, start=1):
        streams = fit_block(block, pair, streams, plan.joins[block.name], fit, reading=reading)
        error = stream_error(streams)
        left = (time.perf_counter() - begun) / done * (count - done)
        plan.say(f"INT8, block {done} of {count}: relative error {error:.4f}, {left:.0f} s left")
    return error


def _fitting(plan: Plan, pair: Pair) -> Fit:
    def fit(layer: str, moments: Moments) -> None:
        linear = pair.student.get_submodule(layer)
        assert isinstance(linear, torch.nn.Linear), "junctions are those of Linear layers"
        bias, ridge = cast("torch.Tensor | None", linear.bias), plan.options.prune.damping
        solved, _ = refit_kept(linear.weight, bias, moments, damping=ridge, steps=plan.options.steps)
        told = moments if bias is not None else moments.uncentred(None)
        rounded = round_kept(solved, damped(told.gram, ridge))
        assert told.target_mean is not None, "collected with wanted outputs"
        store(pair.student, layer, rounded, None if bias is None else told.target_mean - rounded @ told.mean)

    return fit
