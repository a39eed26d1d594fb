"""Two gloo processes against one: the same global batch, the same loss curve; and a state that either goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kept_states import KeptState
from ranks import in_ranks
from tiny_training import assert_one_curve, options, trained

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.distributed import Ranks, process_group


def run(kept: str | None = None, stop: int | None = None, *, int8: bool = False) -> dict[str, Any]:
    """What `trained` finds, and the last state; from a state in a file on."""
    keeper = KeptState(None if kept is None else Path(kept).read_bytes(), stop, KeyboardInterrupt)
    return {**trained(options(), keeper, int8=int8), "state": keeper.kept}


def in_two_processes(folder: Path, **arguments: Any) -> list[dict[str, Any]]:
    return in_ranks(2, folder, __file__, f"run(**{arguments!r})")


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    alone = run()
    first, second = in_two_processes(tmp_path)
    assert len(alone["curve"]) == 3 * 4
    assert min(entry[4] for entry in alone["curve"]) > 0, "the feature term counts at each step"
    for found in (first, second):
        assert_one_curve(found, alone)
        np.testing.assert_allclose(found["blocks"], alone["blocks"], rtol=1e-5)
        for name, value in alone["student"].items():
            torch.testing.assert_close(found["student"][name], value, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, second["student"][name]) for name, value in first["student"].items())


@pytest.mark.slow
def test_learned_scales_of_int8_are_the_same_in_both_processes_and_near_to_those_of_one(tmp_path: Path) -> None:
    """Not as near as 1e-5: a rounding that falls to the other side is a step of INT8."""
    alone = run(int8=True)
    first, second = in_two_processes(tmp_path, int8=True)
    assert first["scale"] == second["scale"] != -3.0
    assert first["scale"] == pytest.approx(alone["scale"], rel=1e-2)
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-2)


@pytest.mark.slow
def test_a_state_of_one_process_goes_on_in_two_and_the_other_way_round(tmp_path: Path) -> None:
    alone, kept = run(), tmp_path / "state"
    kept.write_bytes(run(stop=7)["state"])
    for found in in_two_processes(tmp_path, kept=str(kept)):
        assert len(found["curve"]) == 6
        assert_one_curve(found, alone)
    kept.write_bytes(in_two_processes(tmp_path, stop=7)[0]["state"])
    found = run(str(kept))
    assert len(found["curve"]) == 6
    assert_one_curve(found, alone)


def test_shares_cover_a_batch_and_their_means_average_to_its_mean() -> None:
    values = np.random.default_rng(0).standard_normal(100)
    for world, size in ((1, 5), (2, 7), (3, 2), (4, 1), (8, 32)):
        indices = list(range(10, 10 + size))
        shares = [Ranks(rank, world).share(indices) for rank in range(world)]
        assert sorted(index for share in shares if share.factor for index in share.indices) == indices
        assert all(share.indices for share in shares)
        mean = sum(share.factor * values[share.indices].mean() for share in shares) / world
        assert mean == pytest.approx(values[indices].mean())


def test_a_world_that_isnt_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(GpusqError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT isn't set"), process_group():
        pass


def test_a_world_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(GpusqError, match="not a number"), process_group():
        pass
