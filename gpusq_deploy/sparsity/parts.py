"""Tensors of which each process of torch.distributed holds a part: torch's DTensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor, Replicate


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part, in the same memory; all of a tensor that isn't shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_shared_out(tensor: torch.Tensor) -> bool:
    """Whether each process holds a part of it."""
    return isinstance(tensor, DTensor)


def as_one_kind(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors in the same memory; where one is a DTensor, all are, for torch's operators on lists mix no others."""
    mesh = next((tensor.device_mesh for tensor in tensors if isinstance(tensor, DTensor)), None)
    if mesh is None:
        return list(tensors)
    return [
        tensor if isinstance(tensor, DTensor) else DTensor.from_local(tensor, mesh, [Replicate()], run_check=False)
        for tensor in tensors
    ]
