"""Progress where stderr is no terminal."""

from __future__ import annotations

import pytest

from gpusq_deploy.cli.plain_progress import PlainProgress


def lines(*updates: tuple[float, str, int, int]) -> list[str]:
    said: list[str] = []
    times = iter([at for at, *_ in updates])
    progress = PlainProgress(said.append, clock=lambda: next(times))
    for _, label, done, total in updates:
        progress.update(label, done, total)
    return said


def test_a_stage_that_ends_within_ten_seconds_says_nothing() -> None:
    assert lines(*((second, "calibrating", second, 9) for second in range(10))) == []


def test_a_long_stage_is_told_every_ten_seconds_with_the_time_left() -> None:
    assert lines(*((second, "calibrating", second, 100) for second in range(35))) == [
        "calibrating: 10/100, about 90 s left",
        "calibrating: 20/100, about 80 s left",
        "calibrating: 30/100, about 70 s left",
    ]


def test_what_is_done_at_the_first_call_does_not_count_for_the_speed() -> None:
    assert lines((0, "runs", 50, 100), (20, "runs", 60, 100)) == ["runs: 60/100, about 80 s left"]


def test_what_belongs_beside_a_stage_ends_its_line() -> None:
    said: list[str] = []
    times = iter([0.0, 20.0, 40.0])
    progress = PlainProgress(said.append, clock=lambda: next(times))
    for done in (0, 1, 2):
        progress.detail("epoch 1 of 2", f"hard {done}")
        progress.update("epoch 1 of 2", done, 9)
    assert said == ["epoch 1 of 2: 1/9, about 3 min left, hard 1", "epoch 1 of 2: 2/9, about 2 min left, hard 2"]


def test_stages_side_by_side_and_one_after_another_have_clocks_of_their_own() -> None:
    assert lines(
        (0, "a", 0, 4), (8, "b", 0, 4), (12, "a", 2, 4), (13, "b", 1, 4), (30, "a", 0, 4), (35, "a", 1, 4)
    ) == ["a: 2/4, about 10 s left"]


def test_without_a_step_there_is_no_time_left() -> None:
    assert lines((0, "exporting", 0, 3), (60, "exporting", 0, 3)) == ["exporting: 0/3"]


@pytest.mark.parametrize(("took", "told"), [(12, "110 s"), (20, "3 min"), (100, "15 min"), (1000, "2 h 30 min")])
def test_the_time_left_is_in_few_digits(took: float, told: str) -> None:
    assert lines((0, "x", 0, 10), (took, "x", 1, 10)) == [f"x: 1/10, about {told} left"]
