"""Reconstruction without labels: the sparse model's blocks are fitted to the dense one's.

First in closed form, from the first block to the last: every layer meets the inputs that the blocks before it now
produce, and aims at the dense model's stream (`one_block`). The first such pass chooses the weights again by the
second-order method, with that aim; others keep the pattern and solve for the kept weights (`refit`). Then all blocks
together by gradient, and the means of the two (`by_gradient`). Of the pruned start, the passes and the means, the one
that scores best on the held-out images is the result.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from gpusq_deploy.artifacts import Value
from gpusq_deploy.frontend import weight_of
from gpusq_deploy.sparsity.pruning.block_chain import Chain, first_inputs
from gpusq_deploy.sparsity.pruning.input_moments import Moments
from gpusq_deploy.sparsity.pruning.one_layer import solve_layer
from gpusq_deploy.sparsity.reconstruction.by_gradient import means, train_blocks
from gpusq_deploy.sparsity.reconstruction.one_block import (
    BATCH,
    Fit,
    Pair,
    Streams,
    fit_block,
    run_block,
    stream_error,
)
from gpusq_deploy.sparsity.reconstruction.plan import (
    Data,
    Plan,
    Quality,
    ReconstructOptions,
    left_as_pruned,
    planned,
    store,
)
from gpusq_deploy.sparsity.reconstruction.refit import refit_kept

# An error this many times as large on held-out images as on the others is that of too few images.
_FORGETS = 1.5


class BlockError(Value):
    """Relative error of what a block passes on, on held-out images: pruned, and reconstructed."""

    block: str
    pruned: float
    reconstructed: float


class PassResult(Value):
    """A state of the model: the pruned start, a pass's end, or a mean; `seconds` and CPU seconds from the beginning.

    `fitted` is the relative error behind the last block on the images of the fit; None of the start and the means.
    """

    name: str
    scores: tuple[float, ...]
    fitted: float | None
    seconds: float
    cpu_seconds: float


class Reconstruction(Value):
    """What was done. `kept` names the pass that is the result."""

    images: int
    kept: str
    passes: tuple[PassResult, ...]
    blocks: tuple[BlockError, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Clock:
    wall: float
    cpu: float

    @classmethod
    def started(cls) -> _Clock:
        return cls(wall=time.perf_counter(), cpu=time.process_time())

    def since(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.wall, "cpu_seconds": time.process_time() - self.cpu}


def reconstruct(
    pair: Pair,
    layers: Sequence[str],
    data: Data,
    options: ReconstructOptions,
    say: Callable[[str], None],
) -> tuple[torch.nn.Module, Reconstruction]:
    """Fit the pruned model to the dense one; never worse on the held-out images than it was.

    Args:
        pair: The dense model, and the pruned one to start from; neither is changed.
        layers: Names of its 2:4 Linear layers; those outside the blocks stay as they are, and the notes say so.
        data: Unlabelled images.
        options: See `ReconstructOptions`.
        say: Hears the loss of each block and the time left.

    Returns:
        The best module, every named layer 2:4, and what was done.

    Raises:
        GpusqError: The model has no chain of blocks that holds one of the layers, or inputs that aren't finite.
    """
    plan = planned(pair.teacher, layers, data.images, options, say)
    tried = _Tried(quality=data.quality)
    tried.add("pruned", copy.deepcopy(pair.student))
    work = Pair(teacher=pair.teacher, student=copy.deepcopy(pair.student))
    for number in range(1, options.passes + 1):
        fitted = _one_pass(plan, work, number)
        tried.add(f"pass {number}", copy.deepcopy(work.student), fitted)
    if options.gradient_steps:
        _train(plan, Pair(teacher=pair.teacher, student=tried.best), layers, data.images, tried)
    best = Pair(teacher=pair.teacher, student=tried.best)
    blocks = _block_errors(plan.chain, pair, best.student, data.held_out)
    rebuilt = None if tried.kept.name == "pruned" else _fitted(plan, best)
    notes = (*left_as_pruned(plan, layers), *_limits(blocks, rebuilt))
    report = Reconstruction(
        images=len(data.images), kept=tried.kept.name, passes=tuple(tried.passes), blocks=blocks, notes=notes
    )
    return best.student, report


@dataclass(kw_only=True, slots=True)
class _Tried:
    """The states of the model until now, and the best of them."""

    quality: Quality
    clock: _Clock = field(default_factory=_Clock.started)
    passes: list[PassResult] = field(default_factory=list[PassResult])
    kept: PassResult = field(init=False)
    best: torch.nn.Module = field(init=False)

    def add(self, name: str, module: torch.nn.Module, fitted: float | None = None) -> None:
        """Score one, which isn't changed any more."""
        self.passes.append(PassResult(name=name, scores=self.quality(module), fitted=fitted, **self.clock.since()))
        if len(self.passes) == 1 or self.passes[-1].scores > self.kept.scores:
            self.kept, self.best = self.passes[-1], module


def _train(plan: Plan, start: Pair, layers: Sequence[str], images: torch.Tensor, tried: _Tried) -> None:
    masks = {layer: weight_of(start.student, layer) != 0 for layer in layers}
    trained = train_blocks(plan, start, masks, images, plan.options.gradient_steps)
    for share, mean in means(start.student, trained):
        tried.add(f"trained, {share:.0%}", mean)


def _one_pass(plan: Plan, pair: Pair, number: int) -> float:
    """Fit every block in its order; the relative error behind the last on the images of the fit."""
    fit = _choosing(plan, pair) if number == 1 else _refitting(plan, pair)
    streams = Streams(dense=plan.tokens, sparse=plan.tokens)
    error, begun = 0.0, time.perf_counter()
    for done, block in enumerate(plan.chain.blocks, start=1):
        streams = fit_block(block, pair, streams, plan.joins[block.name], fit)
        error = stream_error(streams)
        left = (time.perf_counter() - begun) / done * (len(plan.chain.blocks) - done)
        plan.say(
            f"pass {number} of {plan.options.passes}, block {done} of {len(plan.chain.blocks)}: relative error "
            f"{error:.4f}, {left:.0f} s left in this pass"
        )
    return error


def _fitted(plan: Plan, pair: Pair) -> float:
    """The relative error behind the last block on the images of the fit."""
    streams = Streams(dense=plan.tokens, sparse=plan.tokens)
    for block in plan.chain.blocks:
        dense, sparse = run_block(block, pair.teacher, streams.dense), run_block(block, pair.student, streams.sparse)
        streams = Streams(dense=dense, sparse=sparse)
    return stream_error(streams)


def _choosing(plan: Plan, pair: Pair) -> Fit:
    """Choose the weights of the dense layer again, with the aim of reconstruction."""

    def fit(layer: str, moments: Moments) -> None:
        dense = pair.teacher.get_submodule(layer)
        assert isinstance(dense, torch.nn.Linear), "junctions are those of Linear layers"
        solution = solve_layer(dense.weight, dense.bias, moments, plan.options.prune)
        store(pair.student, layer, solution.weight, solution.bias)

    return fit


def _refitting(plan: Plan, pair: Pair) -> Fit:
    def fit(layer: str, moments: Moments) -> None:
        linear = pair.student.get_submodule(layer)
        assert isinstance(linear, torch.nn.Linear), "junctions are those of Linear layers"
        ridge, steps = plan.options.prune.damping, plan.options.steps
        store(pair.student, layer, *refit_kept(linear.weight, linear.bias, moments, damping=ridge, steps=steps))

    return fit


def _block_errors(chain: Chain, pair: Pair, best: torch.nn.Module, images: torch.Tensor) -> tuple[BlockError, ...]:
    dense = pruned = rebuilt = first_inputs(pair.teacher, chain.blocks[0], images, BATCH)
    found: list[BlockError] = []
    for block in chain.blocks:
        dense, pruned = run_block(block, pair.teacher, dense), run_block(block, pair.student, pruned)
        rebuilt = run_block(block, best, rebuilt)
        before, after = (stream_error(Streams(dense=dense, sparse=sparse)) for sparse in (pruned, rebuilt))
        found.append(BlockError(block=block.name, pruned=before, reconstructed=after))
    return tuple(found)


def _limits(blocks: Sequence[BlockError], fitted: float | None) -> list[str]:
    """What limits the result, in sentences; `fitted` is the error on the images of the fit, None of the start."""
    last, worst = blocks[-1], max(blocks, key=lambda block: block.reconstructed)
    told = [
        f"relative error behind the last block on held-out images: {last.pruned:.4f} pruned, {last.reconstructed:.4f} "
        f"reconstructed; the largest is {worst.reconstructed:.4f} behind {worst.block}"
    ]
    if fitted is None:
        return [*told, "no pass scored above the pruned model on the held-out images: more images may help"]
    ratio = last.reconstructed / fitted if fitted > 0 else 1.0
    limit = (
        "other images than these would help" if ratio > _FORGETS else "the kept weights are the limit, not the images"
    )
    return [*told, f"on the images of the fit it is {fitted:.4f}, {ratio:.1f} times less: {limit}"]
