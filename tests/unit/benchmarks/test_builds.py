"""Files of several builds: what they hold, and how two of them are compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from gpusq_deploy.artifacts import EngineBuilds, EngineRebuild, Runs, Series, json_from_value, value_from_json
from gpusq_deploy.benchmarks.latency_html import latency_parts
from gpusq_deploy.benchmarks.regression import compare
from gpusq_deploy.benchmarks.report import text_from_runs
from gpusq_deploy.benchmarks.statistics import ratio_interval, unit_medians
from gpusq_deploy.benchmarks.summary import samples_of

MakeRuns = Callable[[dict[int, Any]], Runs]
Cube = NDArray[np.float64]


def builds_of(count: int, *, distinct: int | None = None, target: str = "a100") -> EngineBuilds:
    engines = tuple(
        EngineRebuild(
            engine_digest=f"sha256:{number % (distinct or count)}", layers_digest="sha256:k", build_seconds=1.0
        )
        for number in range(count)
    )
    return EngineBuilds(target=target, version="tensorrt 10", options=("level=3",), sparse=True, engines=engines)


@pytest.fixture
def built(make_runs: MakeRuns) -> Callable[..., Runs]:
    """Runs of one batch size from [builds, repeats, iterations]."""

    def make(samples: Cube, **about: Any) -> Runs:
        builds, repeats, _ = samples.shape
        taken: Any = samples.tolist()
        series = tuple(
            Series(batch=1, rebuild=build, repeat=repeat, warmup=2, samples_ms=tuple(taken[build][repeat]))
            for repeat in range(repeats)
            for build in range(builds)[:: 1 if repeat % 2 == 0 else -1]
        )
        return msgspec.structs.replace(
            make_runs({1: samples[0]}), builds=builds_of(builds, **about), series=series, outputs="compared"
        )

    return make


def drawn(seed: int, *, between: float, builds: int = 5, factor: float = 1.0) -> Cube:
    """Latencies around 10 ms: builds spread by `between`, processes by 0.3 % and inferences by 1 %."""
    rng = np.random.default_rng(seed)
    noise = (
        between * rng.standard_normal((builds, 1, 1))
        + 0.003 * rng.standard_normal((builds, 5, 1))
        + 0.01 * rng.standard_normal((builds, 5, 12))
    )
    samples: Cube = 10 * factor * np.exp(noise)
    return samples


def test_samples_come_by_build_whatever_the_order_of_measurement(built: Callable[..., Runs]) -> None:
    samples = drawn(0, between=0.02, builds=3)
    runs = built(samples)
    assert runs.rebuilds == 3
    assert np.array_equal(samples_of(runs, 1), samples)
    assert unit_medians(samples).tolist() == np.median(samples, axis=(1, 2)).tolist()
    assert value_from_json(json_from_value(runs), Runs, place="test") == runs


def test_a_missing_repeat_of_a_build_is_noticed(built: Callable[..., Runs]) -> None:
    runs = built(drawn(0, between=0.02, builds=2))
    with pytest.raises(ValueError, match=r"batch 1 needs \(build, repeat\) \[\(0, 0\), .*, not \[\(0, 0\)"):
        msgspec.structs.replace(runs, series=runs.series[:-1])
    with pytest.raises(ValueError, match="several builds are at least two"):
        builds_of(1)


def test_files_from_before_builds_and_states_are_read(make_runs: MakeRuns) -> None:
    runs = make_runs({1: np.full((5, 10), 1.0)})
    plain = json.loads(json_from_value(runs))
    for name in ("builds", "states"):
        del plain[name]
    for series in plain["series"]:
        del series["rebuild"]
    for name in ("numa_nodes", "governor", "power_mode", "huge_pages"):
        del plain["environment"][name]
    assert value_from_json(json.dumps(plain).encode(), Runs, place="test") == runs


def test_the_interval_draws_builds(built: Callable[..., Runs]) -> None:
    base, head = drawn(1, between=0.03), drawn(2, between=0.03)
    (entry,) = compare(built(base), built(head), 0.03).batches
    assert (entry.lower, entry.upper) == tuple(ratio_interval(base, head))
    flat = ratio_interval(base.reshape(25, 12), head.reshape(25, 12))
    assert entry.upper is not None
    assert entry.lower is not None
    assert entry.upper - entry.lower > 1.5 * (flat.upper - flat.lower), "25 processes are only five builds"


@pytest.mark.slow
def test_builds_that_differ_by_chance_are_no_regression(built: Callable[..., Runs]) -> None:
    # Builds spread by 3 %: two recipes that are the same, each built five times, often look 3 % apart.
    by_build: Counter[str] = Counter()
    by_process = 0
    for seed in range(60):
        base, head = drawn(seed, between=0.03), drawn(seed + 1000, between=0.03)
        by_build[compare(built(base), built(head), 0.0).verdict] += 1
        by_process += ratio_interval(base.reshape(25, 12), head.reshape(25, 12)).lower > 1
    # p < 0.01 bounds false alarms: four of 60 would have a chance of 0.3 %.
    assert by_build["regressed"] <= 3
    assert by_process >= 6, "processes taken for independent would be sure of a difference that is chance"


@pytest.mark.slow
@pytest.mark.parametrize("between", [0.01, 0.04])
def test_the_interval_of_five_builds_covers_the_truth(between: float) -> None:
    pairs = ((drawn(seed, between=between), drawn(seed + 5000, between=between)) for seed in range(60))
    covered = sum(interval.lower <= 1 <= interval.upper for interval in (ratio_interval(*pair) for pair in pairs))
    # Of 60 at 95 %, fewer than 53 would have a chance of 1 %.
    assert covered >= 53


def test_a_slower_recipe_is_caught_over_its_builds(built: Callable[..., Runs]) -> None:
    head = built(drawn(4, between=0.005, factor=1.1))
    result = compare(built(drawn(3, between=0.005)), head, 0.03)
    assert (result.verdict, result.exit_code) == ("regressed", 1)


def test_three_builds_are_too_few_for_a_verdict(built: Callable[..., Runs]) -> None:
    (entry,) = compare(built(drawn(0, between=0.01, builds=3)), built(drawn(1, between=0.01)), 0.03).batches
    assert (entry.verdict, entry.reason) == ("inconclusive", "base has 3 builds; a verdict needs 5")


def test_several_builds_are_not_compared_with_one(make_runs: MakeRuns, built: Callable[..., Runs]) -> None:
    samples = drawn(0, between=0.01)
    result = compare(make_runs({1: samples[0]}), built(samples), 0.03)
    assert result.verdict == "not comparable"
    assert result.reasons == (
        "head is several builds of an engine and base a single one: measure both with --rebuilds, or neither",
    )
    other = compare(built(samples, target="orin"), built(samples), 0.03)
    assert other.reasons == ("engine built for: orin in base, a100 in head",)


def test_the_table_says_how_far_builds_lie_apart(built: Callable[..., Runs]) -> None:
    samples = np.broadcast_to(np.array([10.0, 10.2, 10.1])[:, None, None], (3, 5, 12))
    text = text_from_runs(built(samples, distinct=2))
    assert "builds   3 builds, 2 distinct engines, 1 distinct list of kernels" in text
    assert "5 sessions x 12 inferences after 2 warm-ups, of each build" in text
    assert "batch 1: medians of the builds are 10.000, 10.200, 10.100 ms, 2.0% apart" in text
    assert "bit for bit" not in text
    assert "all builds are one engine, bit for bit" in text_from_runs(built(samples, distinct=1))


def test_a_page_shows_each_process_of_each_build(built: Callable[..., Runs]) -> None:
    (part,) = latency_parts([built(drawn(0, between=0.01, builds=3))])
    assert sorted(row.process for row in part.rows) == list(range(15))
