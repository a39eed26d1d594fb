"""The processes that torchrun starts: which of them this is, and how each hears of all.

The one module outside checkpoint/, export/ and compress/ that imports torch, late and only where there are several
processes: its gloo back end carries bytes between them, and torchrun ends all when one fails.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.numerics import MOST_ADDERS, cpu_workers

# Ranks may finish hours apart where one has a slower disk; torchrun itself notices one that ended.
_PATIENCE = timedelta(days=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process is `rank` of `world`, and one of `local` on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 1

    @property
    def first(self) -> bool:
        """True for the one process that speaks and writes."""
        return self.rank == 0

    def workers(self) -> int:
        """Threads for this process; see `cpu_workers`."""
        return cpu_workers(processes=self.local)

    def adders(self) -> int:
        """The same where channels are looked at."""
        return cpu_workers(MOST_ADDERS, processes=self.local)

    def gather(self, own: bytes) -> Sequence[bytes]:
        """Every rank's bytes, in the order of ranks; each rank calls this once, with its own.

        Raises:
            GpusqError: The others can't be reached.
        """
        return (own,) if self.world == 1 else _gather(own)


def ranks_from_environment(environment: Mapping[str, str]) -> Ranks:
    """What torchrun says; a process that was started without it is alone.

    Raises:
        GpusqError: The variables contradict each other.
    """
    try:
        rank, world, local = (
            int(environment.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1"))
        )
    except ValueError as error:
        raise GpusqError(f"not a number: {error}", place="RANK, WORLD_SIZE, LOCAL_WORLD_SIZE") from error
    if not 0 <= rank < world or not 1 <= local <= world:
        raise GpusqError(
            f"rank {rank} of {world} processes, {local} on this machine: that can't be",
            place="RANK, WORLD_SIZE, LOCAL_WORLD_SIZE",
            hint="start it with torchrun, or unset these variables",
        )
    return Ranks(rank=rank, world=world, local=local)


@contextmanager
def ended_by_sigterm() -> Generator[None]:
    """While it is active, SIGTERM ends the process at once.

    While a process waits for others in native code no Python handler runs, and torchrun's SIGTERM must end it too.
    """
    if threading.current_thread() is not threading.main_thread():  # others can't set handlers
        yield
        return
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _gather(own: bytes) -> Sequence[bytes]:
    import torch
    import torch.distributed as dist

    try:
        with ended_by_sigterm():
            dist.init_process_group("gloo", timeout=_PATIENCE)
            try:
                size = torch.tensor([len(own)])
                sizes = [torch.zeros_like(size) for _ in range(dist.get_world_size())]
                dist.all_gather(sizes, size)
                lengths = [int(each) for each in sizes]
                padded = torch.zeros(max(lengths), dtype=torch.uint8)
                padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
                parts = [torch.empty_like(padded) for _ in lengths]
                dist.all_gather(parts, padded)
                return [part[:length].numpy().tobytes() for part, length in zip(parts, lengths, strict=True)]
            finally:
                dist.destroy_process_group()
    except (RuntimeError, ValueError) as error:  # what torch.distributed raises
        raise GpusqError(
            f"the ranks can't reach each other: {error}",
            place="torch.distributed, gloo",
            hint="see the other ranks' messages; start them with torchrun",
        ) from error
