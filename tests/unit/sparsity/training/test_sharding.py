"""Fully sharded training against one process: the same curve and student, and each process holds its part alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import ended, in_ranks, start_ranks
from tiny_training import EPOCHS, LAYERS, STEPS, assert_one_curve, options, pair, trained
from torch import nn

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.parts import own_part
from gpusq_deploy.sparsity.training import sharded_keeper
from gpusq_deploy.sparsity.training.distributed import ALONE, ranks
from gpusq_deploy.sparsity.training.resume import Every, ResumeFolder
from gpusq_deploy.sparsity.training.sharded_keeper import ShardedKeeper
from gpusq_deploy.sparsity.training.sharding import require_shardable


def bytes_held(value: Any, *, part: bool) -> int:
    """Of the float tensors in a state: of this process's parts, or of all of them."""
    if isinstance(value, torch.Tensor):
        held = own_part(value) if part else value
        return held.numel() * held.element_size() if held.ndim else 0
    if isinstance(value, Mapping):
        return sum(bytes_held(entry, part=part) for entry in value.values())
    return 0


class Watched(ShardedKeeper):
    """Keeps each step, weighs each state, and stops after one of them."""

    stop: int | None = None

    def __init__(self, folder: ResumeFolder) -> None:
        super().__init__(folder, "prune")
        self.shares: dict[str, float] = {}
        self.saved = 0

    def save(self, state: Mapping[str, Any]) -> None:
        for name in ("student", "best", "optimizer", "average"):
            whole = bytes_held(state[name], part=False)
            if whole:
                self.shares[name] = bytes_held(state[name], part=True) / whole
        super().save(state)
        self.saved += 1
        if self.saved == self.stop:
            raise KeyboardInterrupt


def folder_in(place: str, *, resume: bool) -> ResumeFolder:
    folder = ResumeFolder(Path(place) / "model.pt", {"model": "1"}, Every(steps=1), ranks())
    folder.begin(resume=resume)
    return folder


def run(place: str, *, resume: bool = False, stop: int | None = None, int8: bool = False, **asked: Any) -> dict[str, Any]:
    """A sharded run whose state is kept in a folder."""
    keeper = Watched(folder_in(place, resume=resume))
    keeper.stop = stop
    return {**trained(options(fsdp=True, **asked), keeper, int8=int8), "shares": keeper.shares}


def in_processes(world: int, place: Path, **arguments: Any) -> list[dict[str, Any]]:
    return in_ranks(world, place, __file__, f"run({str(place)!r}, **{arguments!r})")


def assert_same_student(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted["student"].items():
        torch.testing.assert_close(found["student"][name], value, rtol=1e-4, atol=1e-5)
    for layer in LAYERS:
        weight = found["student"][f"{layer}.weight"]
        assert int((weight.reshape(-1, 4) != 0).sum(dim=1).max()) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{"ema": 0.8}, {"recompute": True, "optimizer": "sgd", "learning_rate": 1e-2}])
def test_two_sharded_processes_have_the_loss_curve_of_one_and_hold_half_each(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    alone = trained(options(**asked))
    first, second = in_processes(2, tmp_path, **asked)
    assert len(alone["curve"]) == EPOCHS * STEPS
    assert min(entry[4] for entry in alone["curve"]) > 0, "the feature term counts at each step"
    for found in (first, second):
        assert_one_curve(found, alone)
        assert_same_student(found, alone)
        assert found["blocks"] == pytest.approx(alone["blocks"], rel=1e-5)
        assert found["shares"].keys() == {"student", "best", "optimizer", *(["average"] if "ema" in asked else [])}
        # The parameter of three elements alone isn't cut in halves.
        assert list(found["shares"].values()) == pytest.approx([0.5] * len(found["shares"]), abs=0.01)
    assert all(torch.equal(value, second["student"][name]) for name, value in first["student"].items())
