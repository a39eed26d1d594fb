"""Inputs that were quantised about another value than zero: TensorRT's quantisers are symmetric, so it moves out.

    x → s · clamp(round((x - c) / s), -128, 127) + c    in front of    W x + b          is
    x' → s · clamp(round(x' / s), -128, 127)            in front of    W x' + (b + W c)     with x' = x - c

1. A quantiser of codes from `low` to `high` = low + 255 without an offset is that with c = s · (low + 128).
2. W is on its grid, as the producer ran it; so the sum is exact, and the code of every value is the producer's.
3. A convolution that pads with zeros would pad with c, and one with other codes has no such form: they get symmetric
   ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from gpusq_deploy.frontend.checkpoint.adapters.quantizer_record import (
    LARGEST_CODE,
    InputQuantizer,
    QuantizerRecord,
)
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.frontend.checkpoint.modules import named_modules
from gpusq_deploy.text import some

_CODES = 255


def with_offsets(checkpoint: Checkpoint, run: Callable[[], object]) -> Checkpoint:
    """The checkpoint, whose module is changed, with symmetric quantisers where an offset could be moved out.

    Args:
        checkpoint: With the quantisers that its file records.
        run: Runs the module once: a layer that isn't called then (nn.MultiheadAttention multiplies by its out_proj's
            weight itself) would never subtract anything, and stays as it is.
    """
    if not checkpoint.quantizers.inputs.keys() & checkpoint.ranges.keys():
        return checkpoint
    moved = dict(_moved(checkpoint, _called(checkpoint, run)))
    if not moved:
        return checkpoint
    largest = LARGEST_CODE["int8"]
    ranges = {**checkpoint.ranges, **{layer: largest * scale for layer, scale in moved.items()}}
    inputs = {layer: found for layer, found in checkpoint.quantizers.inputs.items() if layer not in moved}
    said = f"subtracted in front of the layer, and put into its bias: what inputs are quantised about: {some([*moved])}"
    return replace(
        checkpoint,
        ranges=ranges,
        quantizers=replace(checkpoint.quantizers, inputs=inputs),
        remarks=(*checkpoint.remarks, said),
    )


def _called(checkpoint: Checkpoint, run: Callable[[], object]) -> dict[str, torch.nn.Module]:
    """Modules with a recorded quantiser that are called as modules, by name."""
    called: dict[str, torch.nn.Module] = {}
    wanted = {name: child for name, child in named_modules(checkpoint.module) if name in checkpoint.quantizers.inputs}
    hooks = [child.register_forward_pre_hook(_noted(called, name)) for name, child in wanted.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _noted(called: dict[str, torch.nn.Module], name: str) -> Any:
    def hook(module: torch.nn.Module, _given: tuple[Any, ...]) -> None:
        called[name] = module

    return hook


def _moved(checkpoint: Checkpoint, modules: Mapping[str, torch.nn.Module]) -> Iterator[tuple[str, float]]:
    """Layers that were changed, and the scales of their inputs."""
    record = checkpoint.quantizers
    for layer, quantizer in record.inputs.items():
        module = modules.get(layer)
        if module is None or record.trained(layer, checkpoint.ranges) != ("int8", None):
            continue
        offset = _offset(quantizer, module)
        if offset is not None:
            _move(module, offset, record, layer)
            yield layer, quantizer.scale


def _offset(quantizer: InputQuantizer, module: Any) -> torch.Tensor | None:
    """What the input is quantised about, [1] or, for a Linear, [K]; None where it can't be moved out."""
    if quantizer.kind != "int8" or quantizer.high - quantizer.low != _CODES or not quantizer.scale > 0:
        return None
    given = torch.as_tensor(quantizer.offset).float()
    offset = given.flatten() + quantizer.scale * (quantizer.low + 128)
    if isinstance(module, torch.nn.Linear):
        channels = given.shape[-1:] == (module.in_features,) and offset.numel() == module.in_features
        return offset if channels or offset.numel() == 1 else None
    unpadded = isinstance(module, torch.nn.Conv2d) and module.padding in ((0, 0), "valid")
    return offset if unpadded and offset.numel() == 1 else None


def _move(module: Any, offset: torch.Tensor, record: QuantizerRecord, layer: str) -> None:
    grid = record.grids.get(layer)
    weight: torch.Tensor = module.weight.detach() if grid is None else grid.quantized(module.weight)
    change = (weight.flatten(1).double() * offset.double()).sum(1).float()
    bias = change if module.bias is None else module.bias.detach() + change
    module.bias = torch.nn.Parameter(bias, requires_grad=False)
    module.register_forward_pre_hook(_subtracted(offset if offset.numel() > 1 else offset[0]))


def _subtracted(offset: torch.Tensor) -> Any:
    def hook(_module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0] - offset, *given[1:])

    return hook
