from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gpusq_deploy.artifacts.base import json_from_value, value_from_json
from gpusq_deploy.artifacts.runs import MeasureSettings, Runs, Series
from gpusq_deploy.errors import GpusqError

MakeRuns = Callable[[dict[int, Any]], Runs]


@settings(deadline=None)
@given(st.lists(st.floats(min_value=0, exclude_min=True, allow_infinity=False), min_size=1))
def test_samples_survive_json_to_the_last_bit(samples: list[float]) -> None:
    series = Series(batch=1, repeat=0, warmup=0, samples_ms=tuple(samples))
    assert value_from_json(json_from_value(series), Series, place="test") == series


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_series_refuses_what_is_no_latency(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and positive"):
        Series(batch=1, repeat=0, warmup=0, samples_ms=(1.0, bad))


def test_a_series_refuses_to_be_empty() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Series(batch=1, repeat=0, warmup=0, samples_ms=())


@pytest.mark.parametrize(("warmup", "iterations", "repeats"), [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_settings_refuse_impossible_counts(warmup: int, iterations: int, repeats: int) -> None:
    with pytest.raises(ValueError, match="needs warmup"):
        MeasureSettings(warmup=warmup, iterations=iterations, repeats=repeats)


def test_batches_are_ascending_and_series_are_found_by_batch(make_runs: MakeRuns) -> None:
    runs = make_runs({8: np.full((2, 3), 5.0), 1: np.full((2, 3), 1.0)})
    assert runs.batches == (1, 8)
    assert [(entry.repeat, entry.samples_ms) for entry in runs.of_batch(8)] == [(0, (5.0,) * 3), (1, (5.0,) * 3)]


def test_dropped_outliers_are_noticed(make_runs: MakeRuns) -> None:
    runs = make_runs({1: np.full((2, 3), 5.0)})
    thinned = msgspec.structs.replace(runs.series[1], samples_ms=(5.0, 5.0))
    with pytest.raises(ValueError, match="batch 1, repeat 1: 2 samples of 3"):
        msgspec.structs.replace(runs, series=(runs.series[0], thinned))


def test_a_missing_repeat_is_noticed(make_runs: MakeRuns) -> None:
    runs = make_runs({1: np.full((3, 2), 5.0)})
    with pytest.raises(ValueError, match=r"batch 1 needs repeats \[0, 1, 2\], not \[0, 2\]"):
        msgspec.structs.replace(runs, series=(runs.series[0], runs.series[2]))


def test_descending_repeats_are_refused(make_runs: MakeRuns) -> None:
    runs = make_runs({1: np.full((2, 2), 5.0)})
    with pytest.raises(ValueError, match="ascending"):
        msgspec.structs.replace(runs, series=runs.series[::-1])


def test_no_series_are_refused(make_runs: MakeRuns) -> None:
    runs = make_runs({1: np.full((2, 2), 5.0)})
    with pytest.raises(ValueError, match="at least one series"):
        msgspec.structs.replace(runs, series=())


def test_runs_survive_json_and_another_schema_does_not(make_runs: MakeRuns) -> None:
    runs = make_runs({1: np.array([[0.1, 0.2], [1 / 3, 1e-7]])})
    data = json_from_value(runs)
    assert value_from_json(data, Runs, place="test") == runs
    with pytest.raises(GpusqError, match="not a valid Runs file"):
        value_from_json(data.replace(b"gpusq.runs/1", b"gpusq.runs/9"), Runs, place="test")
