from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from gpusq_deploy.artifacts.base import json_from_value, value_from_json
from gpusq_deploy.artifacts.runs import Runs
from gpusq_deploy.benchmarks.regression import Comparison, compare
from gpusq_deploy.benchmarks.statistics import Interval

MakeRuns = Callable[[dict[int, Any]], Runs]
Draw = Callable[..., Any]
BUDGET = 0.03


def _with(runs: Runs, part: str, **changes: object) -> Runs:
    return msgspec.structs.replace(runs, **{part: msgspec.structs.replace(getattr(runs, part), **changes)})


@pytest.mark.slow
def test_an_a_a_comparison_holds_and_is_never_a_regression(make_runs: MakeRuns, draw: Draw) -> None:
    verdicts = Counter(
        compare(make_runs({1: draw(seed)}), make_runs({1: draw(seed + 10_000)}), BUDGET).verdict for seed in range(100)
    )
    # p < 0.01 alone bounds false alarms by 2 of 252 splits: five of 100 would have a chance of 0.2 %.
    assert verdicts["regressed"] <= 4
    assert verdicts["holds"] >= 80
    assert set(verdicts) <= {"holds", "inconclusive", "regressed"}


@pytest.mark.slow
def test_with_large_jumps_between_sessions_a_a_is_still_no_regression(make_runs: MakeRuns, draw: Draw) -> None:
    # Here a test on the pooled samples would call most of these differences significant.
    verdicts = Counter(
        compare(
            make_runs({1: draw(seed, between=0.08)}), make_runs({1: draw(seed + 10_000, between=0.08)}), BUDGET
        ).verdict
        for seed in range(100)
    )
    assert verdicts["regressed"] <= 4


def test_a_file_compared_with_itself_holds_and_says_so(make_runs: MakeRuns, draw: Draw) -> None:
    runs = make_runs({1: draw(0), 8: draw(1)})
    result = compare(runs, runs, BUDGET)
    assert (result.verdict, result.exit_code) == ("holds", 0)
    assert [entry.ratio for entry in result.batches] == [1.0, 1.0]
    assert any("A/A" in remark for remark in result.remarks)


@pytest.mark.parametrize("seed", range(20))
def test_ten_percent_slower_is_caught(make_runs: MakeRuns, draw: Draw, seed: int) -> None:
    result = compare(make_runs({1: draw(seed)}), make_runs({1: draw(seed + 500, factor=1.1)}), BUDGET)
    assert (result.verdict, result.exit_code) == ("regressed", 1)
    assert result.batches[0].lower is not None
    assert result.batches[0].lower > 1.03
    assert result.batches[0].reason.startswith("slower by at least +")


@pytest.mark.parametrize("seed", range(20))
def test_an_improvement_holds_and_is_said(make_runs: MakeRuns, draw: Draw, seed: int) -> None:
    result = compare(make_runs({1: draw(seed)}), make_runs({1: draw(seed + 500, factor=0.9)}), BUDGET)
    assert result.verdict == "holds"
    assert result.batches[0].reason.startswith("faster: the change lies between -")


def test_slower_within_the_budget_holds_and_is_said(make_runs: MakeRuns, draw: Draw) -> None:
    head = make_runs({1: draw(2, factor=1.1, between=0.002)})
    result = compare(make_runs({1: draw(1, between=0.002)}), head, 0.2)
    assert result.verdict == "holds"
    assert result.batches[0].reason.startswith("slower, but within the budget")


def test_noise_on_both_sides_of_the_budget_is_inconclusive(make_runs: MakeRuns, draw: Draw) -> None:
    head = make_runs({1: draw(4, factor=1.03, between=0.05)})
    result = compare(make_runs({1: draw(3, between=0.05)}), head, BUDGET)
    assert (result.verdict, result.exit_code) == ("inconclusive", 3)
    assert "on both sides of the budget (+3.00%)" in result.batches[0].reason
    assert any(warning.startswith("base is unstable") for warning in result.batches[0].warnings)


@pytest.mark.parametrize(
    ("repeats", "iterations", "reason"),
    [(4, 40, "base has 4 repeats; a verdict needs 5"), (5, 9, "base has 9 iterations per repeat; a verdict needs 10")],
)
def test_too_few_samples_are_inconclusive_even_for_twice_as_slow(
    make_runs: MakeRuns, draw: Draw, repeats: int, iterations: int, reason: str
) -> None:
    shape = {"repeats": repeats, "iterations": iterations}
    result = compare(make_runs({1: draw(1, **shape)}), make_runs({1: draw(2, factor=2.0, **shape)}), BUDGET)
    entry = result.batches[0]
    assert (result.exit_code, entry.verdict, entry.reason) == (3, "inconclusive", reason)
    assert (entry.lower, entry.upper, entry.p_slower) == (None, None, None)
    assert entry.ratio == pytest.approx(2.0, rel=0.05)


def test_one_slow_session_is_not_a_regression(make_runs: MakeRuns) -> None:
    base = np.full((5, 10), 10.0) + np.linspace(0, 0.01, 50).reshape(5, 10)
    head = base.copy()
    head[2] *= 3
    assert compare(make_runs({1: base}), make_runs({1: head}), BUDGET).verdict != "regressed"


def test_a_large_shift_without_separated_repeats_lacks_proof(
    monkeypatch: pytest.MonkeyPatch, make_runs: MakeRuns
) -> None:
    # If the bootstrap were this sure of itself, only the second condition would hold it back.
    base = np.repeat(np.array([[10.0], [10.0], [10.0], [10.0], [16.0]]), 10, axis=1)
    head = np.repeat(np.array([[12.0], [12.0], [12.0], [12.0], [9.0]]), 10, axis=1)

    def certain(_base: object, _head: object) -> Interval:
        return Interval(1.1, 1.3)

    monkeypatch.setattr("gpusq_deploy.benchmarks.regression.ratio_interval", certain)
    entry = compare(make_runs({1: base}), make_runs({1: head}), BUDGET).batches[0]
    assert entry.p_slower is not None
    assert entry.p_slower >= 0.01
    assert entry.verdict == "inconclusive"
    assert "is not below 0.01" in entry.reason


def test_the_worst_batch_decides(make_runs: MakeRuns, draw: Draw) -> None:
    base = make_runs({1: draw(1), 8: draw(2)})
    head = make_runs({1: draw(3), 8: draw(4, factor=1.2)})
    result = compare(base, head, BUDGET)
    assert [entry.verdict for entry in result.batches] == ["holds", "regressed"]
    assert result.verdict == "regressed"


def test_only_shared_batches_are_compared_and_the_rest_is_said(make_runs: MakeRuns, draw: Draw) -> None:
    result = compare(make_runs({1: draw(1), 4: draw(2)}), make_runs({1: draw(3), 8: draw(4)}), BUDGET)
    assert [entry.batch for entry in result.batches] == [1]
    said = " ".join(result.remarks)
    assert "in base only, so not compared: batch 4" in said
    assert "in head only, so not compared: batch 8" in said


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("environment", {"cpu": "Other CPU"}, "CPU: Some CPU in base, Other CPU in head"),
        ("environment", {"cores": 4}, "cores: 2 in base, 4 in head"),
        ("environment", {"cpu_quota": 1.5}, "CPU quota: unknown or none in base, 1.5 in head"),
        ("environment", {"gpu": "Orin"}, "GPU: unknown or none in base, Orin in head"),
        ("runtime", {"name": "tensorrt"}, "runtime: onnxruntime in base, tensorrt in head"),
        ("runtime", {"threads": None}, "threads: 2 in base, unknown or none in head"),
        ("runtime", {"device": "Orin"}, "device: Some CPU in base, Orin in head"),
        ("settings", {"warmup": 9}, "warm-up: 2 in base, 9 in head"),
        ("settings", {"inputs": "given"}, "inputs: standard-normal in base, given in head"),
        ("settings", {"seed": 5}, "seed: 0 in base, 5 in head"),
    ],
)
def test_other_circumstances_are_not_comparable(
    make_runs: MakeRuns, draw: Draw, part: str, change: dict[str, object], said: str
) -> None:
    base = make_runs({1: draw(1)})
    result = compare(base, _with(base, part, **change), BUDGET)
    assert (result.verdict, result.exit_code) == ("not comparable", 4)
    assert result.reasons == (said,)
    assert result.batches == ()


def test_every_obstacle_is_listed(make_runs: MakeRuns, draw: Draw) -> None:
    base = make_runs({1: draw(1)})
    head = _with(_with(make_runs({2: draw(1)}), "environment", cpu="Other", clocks_locked=True), "runtime", name="x")
    base = _with(base, "environment", clocks_locked=False)
    assert compare(base, head, BUDGET).reasons == (
        "CPU: Some CPU in base, Other in head",
        "runtime: onnxruntime in base, x in head",
        "no shared batch size: [1] in base, [2] in head",
        "CPU clocks locked: False in base, True in head",
    )


@pytest.mark.parametrize("side", ["base", "head"])
def test_latencies_of_outputs_that_nobody_compared_dont_count(side: str, make_runs: MakeRuns, draw: Draw) -> None:
    runs = {"base": make_runs({1: draw(1)}), "head": make_runs({1: draw(2)})}
    runs[side] = msgspec.structs.replace(runs[side], outputs="not compared")
    result = compare(runs["base"], runs["head"], BUDGET)
    assert (result.verdict, result.exit_code) == ("not comparable", 4)
    (reason,) = result.reasons
    assert f"the outputs of {side} weren't compared" in reason
    assert "--reference" in reason
    runs[side] = msgspec.structs.replace(runs[side], outputs=None)
    assert "compared with the CPU" not in " ".join(compare(runs["base"], runs["head"], BUDGET).remarks)
    runs = {name: _with(one, "runtime", name="tensorrt") for name, one in runs.items()}
    older = compare(runs["base"], runs["head"], BUDGET)
    assert older.verdict == "holds"
    assert f"whether the outputs of {side} were compared" in " ".join(older.remarks)


def test_software_and_model_may_differ_but_are_said(make_runs: MakeRuns, draw: Draw) -> None:
    base = make_runs({1: draw(1)})
    head = _with(_with(base, "runtime", version="2.0"), "environment", gpu_driver="535", clocks_locked=True)
    result = compare(base, msgspec.structs.replace(head, model_digest="sha256:11"), BUDGET)
    assert result.verdict == "holds"
    assert result.remarks == (
        "runtime version: 1.0 in base, 2.0 in head",
        "GPU driver: unknown or none in base, 535 in head",
    )
    assert (result.base_digest, result.head_digest) == ("sha256:00", "sha256:11")


def test_more_repeats_on_one_side_are_comparable(make_runs: MakeRuns, draw: Draw) -> None:
    assert compare(make_runs({1: draw(1)}), make_runs({1: draw(2, repeats=8)}), BUDGET).verdict == "holds"


@pytest.mark.parametrize("budget", [-0.01, float("inf"), float("nan")])
def test_an_impossible_budget_is_our_bug(make_runs: MakeRuns, draw: Draw, budget: float) -> None:
    runs = make_runs({1: draw(1)})
    with pytest.raises(ValueError, match="budget"):
        compare(runs, runs, budget)


def test_a_comparison_survives_json(make_runs: MakeRuns, draw: Draw) -> None:
    result = compare(make_runs({1: draw(1)}), make_runs({1: draw(2)}), BUDGET)
    assert value_from_json(json_from_value(result), Comparison, place="test") == result


def test_nineteen_percent_faster_holds_and_is_not_steady(make_runs: MakeRuns, draw: Draw) -> None:
    base, again = make_runs({1: draw(1)}), make_runs({1: draw(2, factor=0.81)})
    assert compare(base, again, BUDGET).verdict == "holds"
    result = compare(base, again, BUDGET, steady=True)
    assert (result.verdict, result.exit_code) == ("not steady", 3)
    assert "not within 3.00% on both sides" in result.batches[0].reason


def test_steady_is_the_same_from_both_sides(make_runs: MakeRuns, draw: Draw) -> None:
    base = make_runs({1: draw(1, between=0.002)})
    for factor, verdict in ((1.0, "steady"), (0.9, "not steady"), (1.1, "not steady")):
        again = make_runs({1: draw(2, between=0.002, factor=factor)})
        for first, second in ((base, again), (again, base)):
            assert compare(first, second, BUDGET, steady=True).verdict == verdict


def test_one_unsteady_batch_or_too_few_samples_are_not_steady(make_runs: MakeRuns, draw: Draw) -> None:
    base = make_runs({1: draw(1), 8: draw(2)})
    result = compare(base, make_runs({1: draw(3), 8: draw(4, factor=0.8)}), BUDGET, steady=True)
    assert [entry.verdict for entry in result.batches] == ["steady", "not steady"]
    assert result.exit_code == 3
    few = {"repeats": 4}
    result = compare(make_runs({1: draw(1, **few)}), make_runs({1: draw(2, **few)}), BUDGET, steady=True)
    assert (result.verdict, result.batches[0].reason) == ("not steady", "base has 4 repeats; a verdict needs 5")


@pytest.mark.parametrize("which", ["one measurement", "two models"])
def test_steadiness_takes_one_model_measured_twice(which: str, make_runs: MakeRuns, draw: Draw) -> None:
    base = make_runs({1: draw(1)})
    again = base if which == "one measurement" else msgspec.structs.replace(base, model_digest="sha256:11")
    result = compare(base, again, BUDGET, steady=True)
    assert (result.verdict, result.exit_code, result.batches) == ("not comparable", 4, ())
    assert result.reasons[0].startswith("a steady machine")
