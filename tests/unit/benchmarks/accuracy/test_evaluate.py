"""The verdict, by the intervals."""

from __future__ import annotations

import pytest

from gpusq_deploy.benchmarks.accuracy.evaluate import verdict_of
from gpusq_deploy.benchmarks.accuracy.values import Score, SubjectScores


def model(difference: float | None, low: float | None, high: float | None) -> SubjectScores:
    score = Score(measure="top-1", value=0.8, difference=difference, low=low, high=high)
    return SubjectScores(name="m", kind="bundle", runtime="onnxruntime", digest="sha256:0", scores=(score,))


FIRST = model(None, None, None)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.010, 0.000, "holds"),
        (-0.011, 0.000, "inconclusive"),
        (-0.030, -0.010, "inconclusive"),
        (-0.030, -0.011, "dropped"),
        (0.010, 0.030, "holds"),
    ],
)
def test_a_drop_of_one_point(low: float, high: float, verdict: str) -> None:
    assert verdict_of((FIRST, model((low + high) / 2, low, high)), 1.0) == verdict


def test_one_that_dropped_is_enough() -> None:
    found = (FIRST, model(0.0, -0.001, 0.001), model(-0.2, -0.3, -0.1), model(0.0, -0.1, 0.1))
    assert verdict_of(found, 1.0) == "dropped"
