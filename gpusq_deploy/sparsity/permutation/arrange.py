"""Arrange channels before pruning, so that 2:4 keeps more; the dense model stays the same function, which is proven.

Importance is abs(w), or abs(w)·√E[x²] where there is data: what the data-driven methods keep. An order to begin with
deals the channels, strongest first, to and fro over the groups, so that none gets four strong ones; exchanges between
groups then improve it.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from gpusq_deploy.artifacts import Declined, Permuted
from gpusq_deploy.frontend import weight_of
from gpusq_deploy.sparsity.permutation.free_channels import find_channels
from gpusq_deploy.sparsity.permutation.module_parts import left_alone
from gpusq_deploy.sparsity.permutation.reorder import Reorder, keep_proven, permuted_from, places_of, reordered
from gpusq_deploy.sparsity.permutation.search import (
    Permutation,
    broken_groups,
    dealt_order,
    kept_by_24,
    search_permutation,
)
from gpusq_deploy.sparsity.pruning.sites import Site, site_of, without_fast_path
from gpusq_deploy.sparsity.repair.equivalence import TensorRunner

_PROOF_BATCH = 2
# Images that tell E[x²]: more hardly change it.
_POWER_IMAGES = 8
# Rows that the search looks at: with 64 it keeps nearly what it keeps with all, in a sixth of the time.
_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Arranged:
    """The dense model with its channels in another order, proven to be the same function.

    `difference` is the largest that all of it makes to the output, float64, relative to the largest output; None where
    nothing was permuted.
    """

    module: torch.nn.Module
    permuted: tuple[Permuted, ...]
    declined: tuple[Declined, ...]
    difference: float | None

    def lines(self) -> tuple[str, ...]:
        """What was done, in sentences."""
        if not self.permuted:
            return ("--permute: no order was found in which 2:4 keeps more",)
        shares = [sum(item.kept[place] for item in self.permuted) / len(self.permuted) for place in (0, 1)]
        told = [
            f"--permute: {len(self.permuted)} sets of channels permuted, 2:4 keeps {shares[0]:.2%} to {shares[1]:.2%} "
            f"of the importance of their readers; the dense model's output differs by {self.difference:.1g} (float64)"
        ]
        return (*told, *(f"left alone: {item.kind} of {item.place}: {item.reason}" for item in self.declined))


def arrange(
    module: torch.nn.Module, layers: Sequence[str], images: torch.Tensor | None, feed: torch.Tensor, *, seed: int = 0
) -> Arranged:
    """Find and prove an order of every set of free channels that a layer to be pruned reads.

    Args:
        module: Dense, in eval mode; not changed.
        layers: Names of the layers that will be pruned.
        images: float32 [n, C, H, W] that tell E[x²]; None where weights alone count.
        feed: Model inputs to prove it on.
        seed: Decides in which order groups meet.
    """
    channels, declined = find_channels(module)
    wanted = set(layers)
    read = [item for item in channels if wanted.intersection(item.readers)]
    power: dict[str, torch.Tensor] = {}
    if images is not None:
        readers = {name for item in read for name in item.readers if name in wanted}
        power = input_power(module, sorted(readers), images[:_POWER_IMAGES])
    tensors = {name: value.detach() for name, value in module.state_dict().items()}
    found: list[Reorder] = []
    refused: list[Declined] = []
    for item in read:
        scores = _scores(module, [name for name in item.readers if name in wanted], power)
        best = _best_order(scores, item.segment, seed)
        if best.changed:
            broken = (broken_groups(scores > 0), broken_groups(scores[best.order] > 0))
            found.append(Reorder(permuted_from(item, best, found="most magnitude", violations=broken), best.order))
        else:
            refused.append(left_alone(item.kind, item.place, "no other order was found in which 2:4 keeps more"))
    runner = TensorRunner(module, tensors, feed[:_PROOF_BATCH], places_of(found))
    kept, strangers = keep_proven(runner, tensors, found)
    arranged = reordered(tensors, kept)
    result = copy.deepcopy(module)
    result.load_state_dict(arranged)
    return Arranged(
        module=result,
        permuted=tuple(item.permuted for item in kept),
        declined=(*declined, *refused, *strangers),
        difference=runner.difference(arranged) if kept else None,
    )


def input_power(module: torch.nn.Module, layers: Sequence[str], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """E[x²] of the inputs of these Linear layers, [K] each; a layer that is never called is left out."""
    sums: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad(), without_fast_path(), _listening(module, layers, sums):
        module(images)
    return {name: torch.stack(parts).mean(dim=0) for name, parts in sums.items()}


def _scores(module: torch.nn.Module, readers: Sequence[str], power: dict[str, torch.Tensor]) -> torch.Tensor:
    """[K, rows of all readers]: the importance of each weight."""
    parts: list[torch.Tensor] = []
    for name in readers:
        weight = weight_of(module, name).detach().abs().float()
        parts.append(weight * power[name].sqrt() if name in power else weight)
    return torch.cat(parts).T.contiguous().cpu()


def _best_order(scores: torch.Tensor, segment: int, seed: int) -> Permutation:
    before = kept_by_24(scores)
    dealt = dealt_order(scores, segment)
    found = search_permutation(scores[dealt], segment=segment, seed=seed, cycles=1, rows=_ROWS)
    if found.after <= before:
        return replace(found, order=torch.arange(len(scores)), before=before, after=before)
    return replace(found, order=dealt[found.order], before=before)


@contextmanager
def _listening(
    module: torch.nn.Module, layers: Sequence[str], sums: dict[str, list[torch.Tensor]]
) -> Generator[None, None, None]:
    def hook_for(site: Site) -> Any:
        def hook(_child: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            for read in site.reads(module, args, named):
                rows = read.inputs.detach().reshape(-1, read.inputs.shape[-1]).float()
                sums.setdefault(site.layer, []).append(rows.square().mean(dim=0))

        return hook

    with ExitStack() as stack:
        for site in (site_of(module, layer) for layer in layers):
            place = module.get_submodule(site.place)
            stack.callback(place.register_forward_pre_hook(hook_for(site), with_kwargs=True).remove)
        yield
