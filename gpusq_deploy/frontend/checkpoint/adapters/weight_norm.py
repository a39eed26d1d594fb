"""weight_norm of torch: a weight kept as its length g and its direction v, w = g * v / |v|.

    LAYER.weight_g, LAYER.weight_v                             torch.nn.utils.weight_norm
    LAYER.parametrizations.weight.original0, …original1        torch.nn.utils.parametrizations.weight_norm

The norm is over all axes in which g has one index: over all but `dim`, or over all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.text import counted

METHOD = "torch weight_norm"
_NEW = re.compile(r"(?P<prefix>(?:.+\.)?)parametrizations\.(?P<parameter>\w+)\.original0")


def read_weight_norm(reading: Reading) -> Reading:
    """Compute the weights, as the layers do whenever they run."""
    pairs = [pair for pair in _pairs(reading.state) if _fit(reading.state[pair[1]], reading.state[pair[2]])]
    if not pairs:
        return reading
    state = dict(reading.state)
    for _, length, direction in pairs:
        state[direction] = _weight(state.pop(length), state[direction])
    names = {direction: parameter for parameter, _, direction in pairs}
    said = f"{METHOD}: {counted(len(pairs), 'weight')} computed from lengths and directions"
    return replace(
        reading,
        state={names.get(name, name): tensor for name, tensor in state.items()},
        remarks=(*reading.remarks, said),
        producers=(*reading.producers, METHOD),
    )


def _pairs(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, str, str]]:
    """A weight's name, and those of its length and its direction."""
    for key in state:
        direction = f"{key[:-1]}v"
        if key.endswith("_g") and direction in state:
            yield key[:-2], key, direction
        match = _NEW.fullmatch(key)
        within = key.removesuffix("original0")
        if match is not None and {name for name in state if name.startswith(within)} == {key, f"{within}original1"}:
            yield match["prefix"] + match["parameter"], key, f"{within}original1"


def _fit(length: torch.Tensor, direction: torch.Tensor) -> bool:
    """Whether g is of one axis of v, or one number."""
    if not (length.is_floating_point() and direction.is_floating_point()) or direction.ndim < 1:
        return False
    pairs = list(zip(length.shape, direction.shape, strict=False))
    kept = [mine for mine, theirs in pairs if mine == theirs != 1]
    fits = length.ndim == direction.ndim and len(kept) <= 1 and all(mine in (1, theirs) for mine, theirs in pairs)
    return fits or length.ndim == 0


def _weight(length: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """In float32, in the type of the file."""
    g, v = length.float(), direction.float()
    axes = [axis for axis in range(v.ndim) if g.ndim == 0 or g.shape[axis] == 1]
    untyped: Any = torch.linalg  # its functions have no types
    norm: torch.Tensor = untyped.vector_norm(v, dim=axes, keepdim=True)
    return (g * (v / norm)).to(direction.dtype)
