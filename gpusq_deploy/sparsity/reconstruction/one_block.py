"""One pass over one block: each of its Linears is fitted on the inputs that the sparse model gives it.

For a Linear whose output joins the stream at z = gain ⊙ y + rest (see `junctions`), what is wanted of it is

    y* = y + (z_dense - z) / gain

so that it makes up for the error in `rest`, which the blocks before have left, as far as its inputs tell it. Where y
joins nothing, y* is what the dense layer returns in the dense model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from gpusq_deploy.sparsity.pruning.block_chain import Block
from gpusq_deploy.sparsity.pruning.input_moments import GramSums, Moments
from gpusq_deploy.sparsity.reconstruction.junctions import OUTPUT, Junction

BATCH = 16

Fit = Callable[[str, Moments], None]
"""Gives the student's layer of that name new weights."""

Reading = Callable[[str, torch.Tensor], torch.Tensor]
"""What the student's layer of that name multiplies, of what it is given: INT8 holds less of it."""

_Values = dict[str, list[torch.Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The dense model, and the sparse one that is fitted in place; of one architecture, in eval mode."""

    teacher: torch.nn.Module
    student: torch.nn.Module


@dataclass(frozen=True, kw_only=True, slots=True)
class Streams:
    """What reaches a block in the dense and in the sparse model, [n, ...] each."""

    dense: torch.Tensor
    sparse: torch.Tensor


class _Reached(Exception):  # noqa: N818 - not an error: it stops a block that has served its purpose
    pass


@dataclass(kw_only=True, slots=True)
class _Seen:
    """By layer, one entry for each batch: inputs x, outputs y, and the tensor z that they join."""

    inputs: _Values = field(default_factory=_Values)
    outputs: _Values = field(default_factory=_Values)
    joined: _Values = field(default_factory=_Values)


def _as_given(_layer: str, inputs: torch.Tensor) -> torch.Tensor:
    return inputs


def fit_block(
    block: Block,
    pair: Pair,
    streams: Streams,
    joins: Mapping[str, Junction | None],
    fit: Fit,
    *,
    reading: Reading = _as_given,
) -> Streams:
    """Fit the layers of `joins` in their order, then return what both models' next block takes.

    One block's activations for all images are in memory at a time.
    """
    dense_seen = _Seen()
    with _watching(pair.teacher, joins, dense_seen, stop=None):
        dense = _run(block, pair.teacher, streams.dense, dense_seen, joins)
    for layer, junction in joins.items():
        fit(layer, _moments(block, pair.student, streams.sparse, {layer: junction}, dense_seen, reading))
    return Streams(dense=dense, sparse=run_block(block, pair.student, streams.sparse))


def run_block(block: Block, module: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The block's output for all of [n, ...], `BATCH` at a time, without gradients."""
    with torch.no_grad():
        return torch.cat([block.run(module, part) for part in torch.split(tokens, BATCH)])


def stream_error(streams: Streams) -> float:
    """Σ|sparse - dense|² over Σ|dense - mean|², the mean of each channel (last axis) over everything else."""
    rows = streams.dense.reshape(-1, streams.dense.shape[-1])
    power = (rows - rows.mean(dim=0)).square().sum(dtype=torch.float64)
    error = (streams.sparse - streams.dense).square().sum(dtype=torch.float64)
    return float(error / power.clamp_min(torch.finfo(torch.float64).tiny))


def _moments(
    block: Block,
    student: torch.nn.Module,
    tokens: torch.Tensor,
    joins: Mapping[str, Junction | None],
    dense: _Seen,
    reading: Reading,
) -> Moments:
    layer, junction = next(iter(joins.items()))
    sums = GramSums()
    for index, part in enumerate(torch.split(tokens, BATCH)):
        seen = _Seen()
        with _watching(student, joins, seen, stop=layer):
            _run(block, student, part, seen, joins)
        wanted = dense.outputs[layer][index]
        if junction is not None:
            away = dense.joined[layer][index] - seen.joined[layer][0]
            aimed = seen.outputs[layer][0] + away.reshape_as(wanted) / junction.gain
            wanted = torch.where(junction.joins, aimed, wanted)
        sums.add(reading(layer, seen.inputs[layer][0]), wanted)
    return sums.moments()


def _run(
    block: Block, module: torch.nn.Module, tokens: torch.Tensor, seen: _Seen, joins: Mapping[str, Junction | None]
) -> torch.Tensor:
    """The block's output; empty where a hook has stopped it."""
    outputs: list[torch.Tensor] = []
    with torch.no_grad():
        for part in torch.split(tokens, BATCH):
            try:
                outputs.append(block.run(module, part))
            except _Reached:
                continue
            for layer, junction in joins.items():
                if junction is not None and junction.place == OUTPUT:
                    seen.joined.setdefault(layer, []).append(outputs[-1])
    return torch.cat(outputs) if outputs else tokens[:0]


@contextmanager
def _watching(
    module: torch.nn.Module, joins: Mapping[str, Junction | None], seen: _Seen, *, stop: str | None
) -> Generator[None, None, None]:
    """Keep what `seen` holds; the block is left as soon as everything about the layer `stop` is known."""

    def at_layer(layer: str, junction: Junction | None) -> Any:
        def hook(_child: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if stop is not None:
                seen.inputs.setdefault(layer, []).append(args[0].clone())
            # Cloned: what follows may work in place.
            seen.outputs.setdefault(layer, []).append(output.clone())
            if layer == stop and junction is None:
                raise _Reached

        return hook

    def at_junction(layer: str) -> Any:
        def hook(_child: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen.joined.setdefault(layer, []).append(args[0].clone())
            if layer == stop:
                raise _Reached

        return hook

    with ExitStack() as stack:
        for layer, junction in joins.items():
            child = module.get_submodule(layer)
            stack.callback(child.register_forward_hook(at_layer(layer, junction)).remove)
            if junction is not None and junction.place != OUTPUT:
                place = module.get_submodule(junction.place)
                stack.callback(place.register_forward_pre_hook(at_junction(layer)).remove)
        yield
