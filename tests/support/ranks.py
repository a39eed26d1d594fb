"""Processes of torch.distributed on this machine, started as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
import {module} as test
from gpusq_deploy.sparsity.training.distributed import process_group
with process_group() as processes:
    torch.save(test.{call}, {out!r} + f".{{processes.rank}}")
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


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Each one's exit status and what it said, when all are done."""
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, err) for process, err in zip(processes, said, strict=True)]


def in_ranks(world: int, folder: Path, module: str, call: str) -> list[Any]:
    """What a call gives in each process: `module` is a test's file, `call` what is called of it, in words."""
    here, out = Path(module), folder / "found"
    script = _SCRIPT.format(
        paths=[str(here.parent), str(Path(__file__).parent), *sys.path], module=here.stem, call=call, out=str(out)
    )
    for code, err in ended(start_ranks(world, "-c", script)):
        assert code == 0, err
    return [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(world)]
