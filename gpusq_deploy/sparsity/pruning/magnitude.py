"""2:4 pruning by magnitude: which layers, which weights, and keeping them zero during training."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch

from gpusq_deploy.artifacts import Recipe, Value
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import layer_weights, weight_of
from gpusq_deploy.numerics import GROUP, magnitude_mask, rows_from_conv
from gpusq_deploy.sparsity.parts import own_part

_CONVOLUTION = "a convolution: dense unless asked for"

Masks = Mapping[str, torch.Tensor]
"""By layer: booleans of the weight's shape, True where the weight is kept."""


class DenseLayer(Value):
    """A weighted layer that isn't pruned, and why."""

    layer: str
    reason: str


class LayerChoice(Value):
    """Every weighted layer of a model, in its order: pruned, or dense with a reason."""

    pruned: tuple[str, ...]
    dense: tuple[DenseLayer, ...]


class _Weight(NamedTuple):
    layer: str
    convolution: bool
    k: int


def prunable_layers(
    module: torch.nn.Module, recipe: Recipe, dense: Sequence[str] = (), *, convolutions: bool = False
) -> LayerChoice:
    """Decide for each weighted layer whether it is pruned. The first rule that applies decides.

    1. A layer that one of the patterns of `dense` matches stays dense.
    2. A Conv2d stays dense unless `convolutions`. GPUSQ-ViT is reported to prune the patch embedding along
       channels · patch area; the sparse kernels contract channels alone, of which an image has too few.
    3. A Linear that the recipe doesn't expect to be 2:4 stays dense: an output layer, or one of few inputs.
    4. A contracted axis K (a Conv2d's: channels per group) that isn't a multiple of 4 stays dense.
    5. Every other Linear or Conv2d is pruned. The input projections that a nn.MultiheadAttention holds itself are
       Linear layers of the names `in_proj`, or `q_proj`, `k_proj` and `v_proj`.

    Args:
        module: The model.
        recipe: Which Linear layers are expected to be 2:4; the one that gpusq-build will be given.
        dense: Shell patterns on module names, such as `blocks.0.*`.
        convolutions: Prune Conv2d layers too.

    Raises:
        GpusqError: A pattern of `dense` matches no layer, or no layer is left to prune.
    """
    weights = _weights(module)
    _require_matches(dense, [weight.layer for weight in weights])
    reasons = {weight.layer: _dense_reason(weight, recipe, dense, convolutions=convolutions) for weight in weights}
    pruned = tuple(layer for layer, reason in reasons.items() if reason is None)
    left = [DenseLayer(layer=layer, reason=reason) for layer, reason in reasons.items() if reason is not None]
    if not pruned:
        why = "; ".join(f"{entry.layer}: {entry.reason}" for entry in left[:3]) or "it has no Linear layers"
        raise GpusqError(
            f"nothing to prune: {why}", place="the model", hint="relax --dense, give another --recipe, or check --arch"
        )
    return LayerChoice(pruned=pruned, dense=tuple(left))


def recorded_choice(module: torch.nn.Module, layers: Sequence[str]) -> LayerChoice:
    """The choice that a checkpoint records: these layers are pruned, all others are dense."""
    names = [weight.layer for weight in _weights(module)]
    left = tuple(DenseLayer(layer=name, reason="dense in the checkpoint") for name in names if name not in layers)
    return LayerChoice(pruned=tuple(layers), dense=left)


def magnitude_masks(module: torch.nn.Module, layers: Sequence[str]) -> Masks:
    """Masks that keep the two largest magnitudes of each group of four along K; see `numerics.sparsity`.

    Args:
        module: The model with its dense weights, any device.
        layers: Names of Linear and Conv2d layers whose K is a multiple of 4; see `prunable_layers`.

    Returns:
        Masks on the weights' devices.
    """
    return {layer: _magnitude_mask(weight_of(module, layer)) for layer in layers}


def apply_masks(module: torch.nn.Module, masks: Masks) -> None:
    """Set every weight that isn't kept to +0, in place. Call it after each optimiser step: momentum revives zeros."""
    with torch.no_grad():
        for layer, mask in masks.items():
            own_part(weight_of(module, layer)).masked_fill_(~own_part(mask), 0.0)


def _weights(module: torch.nn.Module) -> list[_Weight]:
    return [
        _Weight(layer=weight.layer, convolution=weight.kind != "linear", k=weight.rows.shape[1])
        for weight in layer_weights(module)
    ]


def _dense_reason(weight: _Weight, recipe: Recipe, dense: Sequence[str], *, convolutions: bool) -> str | None:
    matched = _matched(weight.layer, dense)
    if matched is not None:
        return matched
    if weight.convolution and not convolutions:
        return _CONVOLUTION
    if not weight.convolution:
        sparse, reason = recipe.expects_sparse(weight.layer, "linear", weight.k)
        if not sparse:
            return reason
    if weight.k % GROUP:
        return f"K = {weight.k} is not a multiple of {GROUP}"
    return None


def _matched(layer: str, dense: Sequence[str]) -> str | None:
    asked = next((pattern for pattern in dense if fnmatch.fnmatchcase(layer, pattern)), None)
    return None if asked is None else f"asked for by --dense {asked}"


def _require_matches(dense: Sequence[str], names: Sequence[str]) -> None:
    for pattern in dense:
        if not fnmatch.filter(names, pattern):
            near = difflib.get_close_matches(pattern.strip("*."), names, n=3, cutoff=0.4) or list(names[:3])
            raise GpusqError(
                "the pattern matches no weighted layer", place=f"--dense {pattern}", hint=f"layers: {', '.join(near)}"
            )


def _magnitude_mask(weight: torch.Tensor) -> torch.Tensor:
    array = cast("npt.NDArray[Any]", weight.detach().cpu().float().numpy())
    if array.ndim == 2:
        mask = magnitude_mask(array)
    else:
        count, channels, *kernel = array.shape
        rows = magnitude_mask(rows_from_conv(array))
        mask = np.ascontiguousarray(np.moveaxis(rows.reshape(count, *kernel, channels), -1, 1))
    return torch.from_numpy(mask).to(weight.device)
