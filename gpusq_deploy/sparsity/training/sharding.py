"""Fully sharded data parallel (FSDP2): each process holds its part of every parameter, gradient and moment.

torch's `fully_shard` gathers the parameters of a block while it runs, and averages its gradients into their parts, as
DistributedDataParallel averages whole ones.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard  # pyright: ignore[reportUnknownVariableType] # of what it returns
from torch.distributed.tensor import DTensor, distribute_tensor

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import weight_of
from gpusq_deploy.sparsity.pruning.magnitude import Masks
from gpusq_deploy.sparsity.training.blocks import repeated_blocks
from gpusq_deploy.sparsity.training.distributed import Ranks
from gpusq_deploy.sparsity.training.pair import Distilled


def require_shardable(module: torch.nn.Module) -> None:
    """Refuse what `fully_shard` doesn't take.

    Raises:
        GpusqError: A parameter has no axis to shard.
    """
    scalar = next((name for name, value in module.named_parameters() if not value.ndim), None)
    if scalar is not None:
        raise GpusqError(
            f"{scalar} is a single number, which has no axis to shard", place="--fsdp", hint="leave out --fsdp"
        )


def mesh_of(device: torch.device, ranks: Ranks) -> DeviceMesh:
    """All processes in a row."""
    return init_device_mesh(device.type, (ranks.world,))


@contextmanager
def fully_sharded(pair: Distilled, ranks: Ranks) -> Generator[Distilled]:
    """A copy of a pair, sharded over the processes: each repeated block for itself, and the rest.

    Meanwhile the pair itself is on the CPU. At the end its student and scales are those of the copy, whole in each
    process.
    """
    device, modules = pair.device, (pair.student, pair.teacher)
    for module in modules:
        module.cpu()
    try:
        # Together, for a layer in fake quantisation holds its scale.
        student, scales = copy.deepcopy((pair.student, list(pair.scales)))
        mesh = mesh_of(device, ranks)
        sharded = replace(
            pair,
            student=_sharded(student.requires_grad_(requires_grad=True), mesh),
            teacher=_sharded(copy.deepcopy(pair.teacher), mesh),
            masks=_shared_masks(pair.masks, student, mesh),
            scales=scales,
            sharded=True,
        )
        yield sharded
        whole = get_model_state_dict(student, options=StateDictOptions(full_state_dict=True))
        pair.student.load_state_dict(whole)
        with torch.no_grad():
            for scale, trained in zip(pair.scales, scales, strict=True):
                scale.copy_(trained)
    finally:
        for module in modules:
            module.to(device)


def average_gradients(parameters: Sequence[torch.nn.Parameter], ranks: Ranks) -> None:
    """Of parameters that no FSDP shards: each process holds all of them."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(ranks.total(parameter.grad) / ranks.world)


def _sharded(module: torch.nn.Module, mesh: DeviceMesh) -> torch.nn.Module:
    # The root too gives its parameters back after a forward pass: between steps nobody holds more than a part.
    for name in repeated_blocks(module).all:
        fully_shard(module.get_submodule(name), mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return module


def _shared_masks(masks: Masks, student: torch.nn.Module, mesh: DeviceMesh) -> Masks:
    """Of each mask, which is the same in all processes, the part of the process's weights."""
    found: dict[str, torch.Tensor] = {}
    for layer, mask in masks.items():
        weight = weight_of(student, layer)
        assert isinstance(weight, DTensor), "its module was sharded"
        found[layer] = distribute_tensor(mask, mesh, weight.placements, src_data_rank=None)
    return found
