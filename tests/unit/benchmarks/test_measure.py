from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.runs import MeasureSettings
from gpusq_deploy.benchmarks.measure import measure, normal_feeds
from gpusq_deploy.engines.session import TensorSpec
from gpusq_deploy.errors import GpusqError

SETTINGS = MeasureSettings(warmup=1, iterations=2, repeats=3)
FakeSession = Any


def test_sessions_are_fresh_order_alternates_and_warm_up_does_not_count(fake_session: FakeSession) -> None:
    log: list[str] = []
    series = measure(lambda: fake_session(log), (1, 4), SETTINGS)
    one, four = ["run 1", *["time 1"] * 3], ["run 4", *["time 4"] * 3]
    assert log == [
        *("open", *one, *four, "close"),
        *("open", *four, *one, "close"),
        *("open", *one, *four, "close"),
    ]
    assert [(entry.repeat, entry.batch) for entry in series] == [(0, 1), (0, 4), (1, 4), (1, 1), (2, 1), (2, 4)]
    # The fake clock says 1, 2, 3, …: the first of each batch is the warm-up.
    assert [entry.samples_ms for entry in series] == [(2.0, 3.0), (5.0, 6.0)] * 3
    assert {entry.warmup for entry in series} == {1}


def test_progress_is_told_before_each_series_and_at_the_end(fake_session: FakeSession) -> None:
    log: list[str] = []

    def tell(label: str, done: int, total: int) -> None:
        log.append(f"{label} {done}/{total}")

    settings = MeasureSettings(warmup=0, iterations=1, repeats=2)
    measure(lambda: fake_session(log), (4,), settings, tell)
    assert log == [
        *("open", "measuring 0/2", "run 4", "time 4", "close"),
        *("open", "measuring 1/2", "run 4", "time 4", "close", "measuring 2/2"),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_is_timed_after_an_output_that_is_not_finite(fake_session: FakeSession, dtype: Any, bad: float) -> None:
    log: list[str] = []

    def broken() -> FakeSession:
        session = fake_session(log)
        session.answer = np.array([[1.0, bad, bad]]).astype(dtype)
        return session

    with pytest.raises(GpusqError, match="2 of 3 values of output 'y' are not finite at batch 1"):
        measure(broken, (1,), SETTINGS)
    assert log == ["open", "run 1", "close"]


def test_integer_outputs_are_always_finite(fake_session: FakeSession) -> None:
    def integers() -> FakeSession:
        session = fake_session([])
        session.answer = np.array([[1, 2]])
        return session

    assert len(measure(integers, (1,), SETTINGS)) == 3


@pytest.mark.parametrize(
    ("shape", "allowed", "takes"),
    [
        ((-1, 3), BatchRange(minimum=2, optimum=4, maximum=8), "2 to 8"),
        ((-1, 3), BatchRange(minimum=2, optimum=2, maximum=2), "2 only"),
        ((2, 3), None, "2 only, by its input 'x'"),
    ],
)
def test_a_batch_that_does_not_fit_names_what_does(
    fake_session: FakeSession, shape: tuple[int, ...], allowed: BatchRange | None, takes: str
) -> None:
    log: list[str] = []
    with pytest.raises(GpusqError, match="batch 9") as caught:
        measure(lambda: fake_session(log, shape), (2, 9), SETTINGS, allowed=allowed)
    assert f"allowed: {takes}" in str(caught.value)
    assert log == ["open", "close"]


def test_given_inputs_are_fed(fake_session: FakeSession) -> None:
    log: list[str] = []
    asked: list[int] = []

    def feeds(_specs: object, batch: int) -> dict[str, NDArray[Any]]:
        asked.append(batch)
        return {"x": np.zeros((batch, 3), np.float32)}

    measure(lambda: fake_session(log), (7,), MeasureSettings(warmup=0, iterations=1, repeats=1), feeds=feeds)
    assert asked == [7]
    assert log[1:-1] == ["run 7", "time 7"]


def test_made_up_inputs_are_standard_normal_and_seeded() -> None:
    specs = (
        TensorSpec(name="a", shape=(-1, 3, 64), dtype="float32"),
        TensorSpec(name="b", shape=(9,), dtype="float16"),
    )
    feeds = normal_feeds(specs, 50, seed=3)
    assert (feeds["a"].shape, feeds["a"].dtype.name) == ((50, 3, 64), "float32")
    assert (feeds["b"].shape, feeds["b"].dtype.name) == ((9,), "float16")
    # 9600 values: four standard errors of the mean are 0.041, of the deviation 0.029.
    assert abs(float(feeds["a"].mean())) < 0.041
    assert abs(float(feeds["a"].std()) - 1) < 0.029
    again, other = normal_feeds(specs, 50, seed=3), normal_feeds(specs, 50, seed=4)
    assert np.array_equal(feeds["a"], again["a"])
    assert not np.array_equal(feeds["a"], other["a"])


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [((-1, 3), "int64", "can't make up values of type int64"), ((-1, -1), "float32", "dynamic beyond its batch")],
)
def test_inputs_that_cannot_be_made_up_are_refused(shape: tuple[int, ...], dtype: str, message: str) -> None:
    with pytest.raises(GpusqError, match=message):
        normal_feeds((TensorSpec(name="x", shape=shape, dtype=dtype),), 1, seed=0)
