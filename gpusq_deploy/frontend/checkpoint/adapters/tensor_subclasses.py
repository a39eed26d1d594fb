"""Tensors of classes that libraries made, of files whose code the user allowed to run (`--allow-pickle`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.text import counted, some


def read_tensor_subclasses(reading: Reading, *, place: str) -> Reading:
    """Dequantised by their own classes.

    Raises:
        GpusqError: A class fails to.
    """
    found = {name: tensor for name, tensor in reading.state.items() if _is_strange(tensor)}
    if not found:
        return reading
    plain = {name: _dequantised(tensor, place=f"{place}, tensor {name}") for name, tensor in found.items()}
    kinds = sorted(
        {f"{type(tensor).__module__.partition('.')[0]}'s {type(tensor).__name__}" for tensor in found.values()}
    )
    return replace(
        reading,
        state={name: plain.get(name, tensor) for name, tensor in reading.state.items()},
        remarks=(*reading.remarks, f"dequantised {counted(len(found), 'weight')} of {some(kinds)}"),
        producers=(*reading.producers, *(kind.partition("'")[0] for kind in kinds)),
    )


def _is_strange(tensor: torch.Tensor) -> bool:
    return not type(tensor).__module__.startswith("torch.") and type(tensor).__name__ not in ("Tensor", "Parameter")


def _dequantised(tensor: torch.Tensor, *, place: str) -> torch.Tensor:
    untyped: Any = tensor
    convert: Callable[[], object] | None = getattr(untyped, "dequantize", None)
    try:
        values = convert() if convert is not None else None
    except Exception as error:  # the library's own code can raise anything
        raise GpusqError(
            f"{type(tensor).__name__} can't be dequantised: {error}", place=place, hint="save weight.dequantize()"
        ) from error
    if not isinstance(values, torch.Tensor) or _is_strange(values):
        raise GpusqError(
            f"a tensor of the class {type(tensor).__name__}, which gives no plain one",
            place=place,
            hint="save dense float weights",
        )
    return values.detach()
