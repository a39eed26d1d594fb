"""Which process this is, as torchrun says it."""

from __future__ import annotations

import pytest

from gpusq_deploy.calibration.distributed import Ranks, ranks_from_environment
from gpusq_deploy.errors import GpusqError


def test_without_torchrun_a_process_is_alone_and_hears_itself() -> None:
    ranks = ranks_from_environment({})
    assert (ranks, ranks.first) == (Ranks(rank=0, world=1, local=1), True)
    assert list(ranks.gather(b"own")) == [b"own"]


def test_torchrun_says_rank_and_world() -> None:
    ranks = ranks_from_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"})
    assert (ranks, ranks.first) == (Ranks(rank=5, world=8, local=4), False)


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "1"},
        {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "3"},
        {"RANK": "0", "WORLD_SIZE": "0"},
    ],
)
def test_what_can_not_be_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(GpusqError) as caught:
        ranks_from_environment(environment)
    assert "WORLD_SIZE" in str(caught.value.place)


@pytest.mark.parametrize(("processors", "local", "workers"), [(8, 1, 8), (8, 2, 4), (2, 8, 1), (96, 1, 16)])
def test_processes_share_the_processors(
    monkeypatch: pytest.MonkeyPatch, processors: int, local: int, workers: int
) -> None:
    def mine(_process: int) -> set[int]:
        return set(range(processors))

    monkeypatch.setattr("os.sched_getaffinity", mine)
    assert Ranks(world=local, local=local).workers() == workers
