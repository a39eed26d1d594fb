"""Several processes of torch.distributed, as torchrun starts them: who writes, who sees what, and sums over all."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import distributed

from gpusq_deploy.calibration import ended_by_sigterm, ranks_from_environment
from gpusq_deploy.errors import GpusqError

_T = TypeVar("_T")
_GIVEN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Share(NamedTuple):
    """What one process sees of a batch. A mean over its samples, times `factor`, averages to that over the batch."""

    indices: list[int]
    factor: float


class Ranks(NamedTuple):
    """This process among those of the run."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes and speaks."""
        return self.rank == 0

    def share(self, indices: Sequence[int]) -> Share:
        """Every so many samples of a batch; where there are none left, the first with the factor 0."""
        mine = list(indices[self.rank :: self.world])
        factor = self.world * len(mine) / len(indices)
        return Share(mine, factor) if mine else Share(list(indices[:1]), 0.0)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes; no gradient passes."""
        values = values.detach().clone()
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def from_first(self, value: _T) -> _T:
        """The first process's value, in all of them."""
        if self.world == 1:
            return value
        held: list[Any] = [value]
        distributed.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        found: _T = held[0]
        return found

    def same(self, tensors: Sequence[torch.Tensor]) -> None:
        """Make tensors those of the first process, in place."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            distributed.barrier()


ALONE = Ranks()


def ranks() -> Ranks:
    """Of the present process group; alone without one."""
    if not distributed.is_initialized():
        return ALONE
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def device() -> torch.device:
    """Where this process computes."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) if ranks().world > 1 else 0)


@contextmanager
def process_group(*, even_alone: bool = False) -> Generator[Ranks]:
    """While it is active, the process group that torchrun's environment asks for, if any: gloo, NCCL on GPUs.

    With `even_alone` one process is a group too.

    Raises:
        GpusqError: WORLD_SIZE that is no number or without the rest, or fewer GPUs than processes.
    """
    world = ranks_from_environment(os.environ).world
    if distributed.is_initialized() or (world == 1 and not even_alone):
        yield ranks()
        return
    if world == 1:
        # In torch's documentation, but in no __all__.
        store = distributed.HashStore()  # type: ignore[attr-defined] # pyright: ignore[reportPrivateImportUsage]
        with _initialized(store=store, rank=0, world_size=1):
            yield ranks()
        return
    lacks = [name for name in _GIVEN if name not in os.environ]
    if lacks:
        raise GpusqError(
            f"WORLD_SIZE is {world}, but {', '.join(lacks)} isn't set: where the others are is unknown",
            place="the environment",
            hint="start it by torchrun, or unset WORLD_SIZE",
        )
    on_gpu = torch.cuda.is_available()
    local = int(os.environ["LOCAL_RANK"])
    if on_gpu and local >= torch.cuda.device_count():
        raise GpusqError(
            f"process {local} of this machine finds {torch.cuda.device_count()} GPUs",
            place="torchrun",
            hint=f"--nproc-per-node {torch.cuda.device_count()}",
        )
    if on_gpu:
        torch.cuda.set_device(local)
    with ended_by_sigterm(), _initialized():
        yield ranks()


@contextmanager
def _initialized(**options: Any) -> Generator[None]:
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", **options)
    try:
        yield
    finally:
        distributed.destroy_process_group()
