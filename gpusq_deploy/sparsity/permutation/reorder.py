"""Put channels into another order, and keep only what running both models proves to be the same function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from gpusq_deploy.artifacts import Channels, Declined, HowFound, Permuted
from gpusq_deploy.sparsity.permutation.free_channels import permute_channels
from gpusq_deploy.sparsity.permutation.module_parts import left_alone
from gpusq_deploy.sparsity.permutation.search import Permutation, integers_from_tensor
from gpusq_deploy.sparsity.repair.equivalence import TensorRunner

# Float64 and another order of summation: what is larger is another function.
_SAME = 1e-9

Tensors = Mapping[str, torch.Tensor]


class Reorder(NamedTuple):
    """Channels, and the order int64 [size] that they are to have."""

    permuted: Permuted
    order: torch.Tensor


def permuted_from(
    channels: Channels, permutation: Permutation, *, found: HowFound, violations: tuple[int, int]
) -> Permuted:
    """What is told of an order: the shares of the readers' scores that 2:4 keeps before and after, and the rest."""
    total = permutation.total or 1.0
    return Permuted(
        channels=channels,
        found=found,
        order=tuple(integers_from_tensor(permutation.order)),
        violations=violations,
        kept=(permutation.before / total, permutation.after / total),
        settled=permutation.settled,
    )


def reordered(old: Tensors, found: Iterable[Reorder]) -> dict[str, torch.Tensor]:
    """The tensors with all these channels in their new order; the others are handed on as they are."""
    tensors = dict(old)
    for item in found:
        tensors = permute_channels(tensors, item.permuted.channels, item.order)
    return tensors


def places_of(found: Iterable[Reorder]) -> tuple[str, ...]:
    """Where outputs are compared: the model's, and those of the modules that the channels live in."""
    return ("", *(item.permuted.channels.place for item in found if item.permuted.channels.place))


def keep_proven(runner: TensorRunner, old: Tensors, found: Sequence[Reorder]) -> tuple[list[Reorder], list[Declined]]:
    """Keep the permutations after which the model is the same function; the others with the difference they made.

    Those within a module are judged at its own output, where no later scale can hide them. The stream's permutes
    these outputs, so it is judged alone, at the model's.

    Args:
        runner: Made from `old`, for the places of `found`.
        old: All weights by name.
        found: Orders to judge.
    """
    kept: list[Reorder] = []
    refused: list[Declined] = []
    inner = [item for item in found if item.permuted.channels.place]
    if inner and runner.difference(reordered(old, inner), places_of(inner)) <= _SAME:
        kept, inner = inner, []
    for item in (*inner, *(item for item in found if not item.permuted.channels.place)):
        difference = runner.difference(reordered(old, [item]), places_of([item]))
        if difference <= _SAME:
            kept.append(item)
        else:
            channels = item.permuted.channels
            why = f"taken back: run before and after, the outputs differ by {difference:.2g} of the largest"
            refused.append(left_alone(channels.kind, channels.place, why))
    return kept, refused
