"""Factors per channel by which SmoothQuant and AWQ multiply a layer's input; its weights are divided by them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.modules import named_modules
from gpusq_deploy.text import some


def with_factors(module: torch.nn.Module, reading: Reading, *, keep: bool) -> Reading:
    """Make the module compute with the recorded factors; the reading without those.

    Args:
        module: The model, with its weights.
        reading: Under the module's names.
        keep: Multiply the inputs, as the producer ran it. Else multiply the weights: the same in floating point, but
            what is recorded of those layers' quantisers no longer holds and is left out.
    """
    record = reading.quantizers
    layers = {name: child for name, child in named_modules(module) if name in record.factors}
    for name, child in layers.items():
        factor = record.factors[name].to(torch.float32)
        if keep:
            child.register_forward_pre_hook(_multiplied(factor))
        else:
            weight = child.get_parameter("weight").detach() * factor
            child.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))
    record = replace(record, factors={})
    if keep or not layers:
        return replace(reading, quantizers=record)
    return replace(
        reading,
        ranges={layer: amax for layer, amax in reading.ranges.items() if layer not in layers},
        origins={layer: origin for layer, origin in reading.origins.items() if layer not in layers},
        quantizers=replace(record, grids={name: grid for name, grid in record.grids.items() if name not in layers}),
        remarks=(
            *reading.remarks,
            f"the factors are multiplied into the weights, in floating point: {some(list(layers))}",
        ),
    )


def _multiplied(factor: torch.Tensor) -> Any:
    def hook(_module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0] * factor, *given[1:])

    return hook
