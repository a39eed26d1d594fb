"""Processes of torch.distributed on this machine, started as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

_SCRIPT = """
import os
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import {module} as test
from gpusq_deploy.sparsity.training.distributed import process_group
with process_group() as processes:
    found = test.{call}
    processes.wait()
    torch.save(found, {out!r} + f".{{processes.rank}}")
# As commands end under torchrun: gloo's threads may need Python to drop what they sent, and abort where that has ended.
sys.stderr.flush()
os._exit(0)
"""


def start_ranks(world: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """Python with these arguments in so many processes of one group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ranks_of(world: int, folder: Path, module: str, call: str) -> list[tuple[int, str]]:
    """Each process's exit status and what it said; what a call of a test's file gave lies in the folder."""
    here = Path(module)
    paths = [str(here.parent), str(Path(__file__).parent), *sys.path]
    script = _SCRIPT.format(paths=paths, module=here.stem, call=call, out=str(folder / "found"))
    processes = start_ranks(world, "-c", script)
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, err) for process, err in zip(processes, said, strict=True)]


def in_ranks(world: int, folder: Path, module: str, call: str) -> list[Any]:
    """What a call gives in each process; see `ranks_of`."""
    for code, err in ranks_of(world, folder, module, call):
        assert code == 0, err
    return [torch.load(folder / f"found.{rank}", weights_only=False) for rank in range(world)]
