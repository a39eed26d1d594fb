"""Pruning by torch itself: masks beside the weights that they belong to.

    LAYER.weight_orig, LAYER.weight_mask                                    torch.nn.utils.prune
    LAYER.parametrizations.weight.original, LAYER.parametrizations.weight.0.mask     a parametrisation with a mask
    LAYER.weight, LAYER.weight_mask                                         as scripts keep them

Masks of any parameter count, of biases too. torch.ao.pruning keeps its masks out of the model's state dict, in that of
its sparsifier: where the file holds both, they are applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch

from gpusq_deploy.frontend.checkpoint.adapters.masks import Mask, apply_masks, is_mask_of
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.wrappers import plain_name

METHOD = "torch.nn.utils.prune"
PARAMETRISED = "torch.nn.utils.parametrize with masks"
SPARSIFIER = "torch.ao.pruning"
BESIDE = "masks beside weights"
_ORIGINAL = re.compile(r"(?P<prefix>(?:.+\.)?)parametrizations\.(?P<parameter>\w+)\.original")
# A sparsifier's state dict lies this deep in a training script's file, at most.
_DEPTH = 3


def read_torch_masks(reading: Reading, content: Mapping[str, Any], *, place: str) -> Reading:
    """Apply masks of torch's own kinds; see the module's list.

    Raises:
        GpusqError: A mask fits no weight, or holds anything but 0 and 1.
    """
    kinds = (
        (METHOD, list(_pruned(reading.state))),
        (PARAMETRISED, list(_parametrised(reading.state))),
        (SPARSIFIER, list(_by_sparsifier(reading.state, content))),
        (BESIDE, list(_beside(reading.state))),
    )
    for producer, masks in kinds:
        if masks:
            reading = apply_masks(reading, masks, producer=producer, place=place)
    return reading


def _pruned(state: Mapping[str, torch.Tensor]) -> Iterator[Mask]:
    for key, values in state.items():
        parameter = key.removesuffix("_mask")
        if parameter != key and f"{parameter}_orig" in state:
            yield Mask(key=key, values=values, parameter=parameter, source=f"{parameter}_orig")


def _parametrised(state: Mapping[str, torch.Tensor]) -> Iterator[Mask]:
    """Of a parametrisation that is a mask and nothing else."""
    for key, match in _originals(state):
        within = key.removesuffix("original")
        beside = [name for name in state if name.startswith(within) and name != key]
        if beside == [f"{within}0.mask"]:
            yield Mask(key=beside[0], values=state[beside[0]], parameter=_parameter(match), source=key)


def _by_sparsifier(state: Mapping[str, torch.Tensor], content: Mapping[str, Any]) -> Iterator[Mask]:
    originals = [(key, match) for key, match in _originals(state) if not _has_more(key, state)]
    masks = _sparsifiers_masks(content, _DEPTH) if originals else {}
    for key, match in originals:
        values = masks.get(_parameter(match))
        if values is not None:
            yield Mask(
                key=f"the sparsifier's mask of {_parameter(match)}",
                values=values,
                parameter=_parameter(match),
                source=key,
            )


def _beside(state: Mapping[str, torch.Tensor]) -> Iterator[Mask]:
    for key, values in state.items():
        parameter = key.removesuffix("_mask")
        if parameter != key and is_mask_of(values, state.get(parameter)):
            yield Mask(key=key, values=values, parameter=parameter, source=parameter)


def _originals(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, re.Match[str]]]:
    return ((key, match) for key in state if (match := _ORIGINAL.fullmatch(key)) is not None)


def _parameter(match: re.Match[str]) -> str:
    return match["prefix"] + match["parameter"]


def _has_more(key: str, state: Mapping[str, torch.Tensor]) -> bool:
    within = key.removesuffix("original")
    return any(name.startswith(within) and name != key for name in state)


def _sparsifiers_masks(content: Mapping[str, Any], depth: int) -> dict[str, torch.Tensor]:
    """Masks by parameter, of what is like a sparsifier's: `groups`, and in `state` a mapping with `mask` for each."""
    found: dict[str, torch.Tensor] = {}
    kept: object = content.get("state")
    if "groups" in content and isinstance(kept, Mapping):
        for name, one in cast("Mapping[str, object]", kept).items():
            mask = cast("Mapping[str, object]", one).get("mask") if isinstance(one, Mapping) else None
            if isinstance(mask, torch.Tensor):
                found[plain_name(str(name))] = mask
    for value in content.values() if depth > 1 else ():
        if isinstance(value, Mapping):
            found |= _sparsifiers_masks(cast("Mapping[str, Any]", value), depth - 1)
    return found
