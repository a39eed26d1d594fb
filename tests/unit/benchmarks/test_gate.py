"""The interleaved gate: when it stops, what it says, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result

from gpusq_deploy.artifacts import RuntimeInfo
from gpusq_deploy.artifacts.base import json_from_value, read_value, value_from_json
from gpusq_deploy.benchmarks import gate as gate_module
from gpusq_deploy.benchmarks.cpu_clock import Taken
from gpusq_deploy.benchmarks.gate import (
    GateResult,
    Gates,
    GateSettings,
    interleave,
    interleave_models,
    log_ratios,
    sided,
)
from gpusq_deploy.benchmarks.gate_report import gate_line, junit_from_gate, markdown_from_gate, text_from_gate
from gpusq_deploy.benchmarks.noise import MachineNoise, noise_of, spread_of, unlike
from gpusq_deploy.benchmarks.pairs import FIRST_SPAN, TURN, Length, Pair, Sides
from gpusq_deploy.benchmarks.subject import find_subject
from gpusq_deploy.benchmarks.worker import WorkerRequest
from gpusq_deploy.cli.bench import command
from gpusq_deploy.errors import GpusqError

MakeModel = Callable[[str, str], Path]
RunGate = Callable[..., GateResult]
INFO = RuntimeInfo(name="onnxruntime", version="1", device="CPU", reason="a test")


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    def make(name: str, body: str) -> Path:
        path = tmp_path / name
        text = f'<ir_version: 8, opset_import: ["" : 17]> t (float[N, 3] x) => (float[N, 3] y) {{ {body} }}'
        path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
        return path

    return make


@pytest.fixture
def run_gate(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> RunGate:
    """A gate whose pairs are made up: head is slower by `effect`, a pair's log ratio spreads by `noise`.

    `on_cpu` is by how much head is slower by CPU time; None: there is no such clock.
    """

    def run(
        effect: float,
        *,
        noise: float = 0.01,
        sizes: tuple[int, ...] = (1,),
        on_cpu: float | None = None,
        **settings: Any,
    ) -> GateResult:
        rng = np.random.default_rng(1)

        def made_up(_base: object, _head: object, numbers: range, *, length: Length, warmup: int) -> tuple[Pair, ...]:
            assert warmup == 10
            assert len(numbers) == 1
            samples: dict[int, Sides] = {}
            turns = length.turns or (2 if length.span is FIRST_SPAN else 4)
            for batch in sizes:
                head = 10.0 * (1 + effect) * np.exp(noise * rng.standard_normal())
                base = (10.0,) * TURN * turns
                cpu = (() if on_cpu is None else base, () if on_cpu is None else (10.0 * (1 + on_cpu),) * len(base))
                samples[batch] = Sides(Taken(base, cpu[0]), Taken((float(head),) * len(base), cpu[1]))
            return (Pair(samples, turns, (INFO, INFO), 4.0, 1.5, 1),)

        monkeypatch.setattr(gate_module, "take_pairs", made_up)
        model = find_subject(make_model("m.onnx", "y = Relu(x)"), "onnxruntime")
        return interleave(sided(model, model, sizes), GateSettings(**settings))

    return run


def test_it_stops_at_the_first_look_that_decides(run_gate: RunGate) -> None:
    slower = run_gate(0.33)
    assert (slower.verdict, slower.exit_code, slower.stopped) == ("regressed", 1, "decided")
    assert len(slower.pair_seconds) == slower.base.settings.repeats == slower.head.settings.repeats == 11
    same = run_gate(0.0, noise=0.004)
    assert (same.verdict, same.exit_code, len(same.pair_seconds)) == ("holds", 0, 11)
    (entry,) = slower.batches
    assert entry.lower is not None
    assert 1.03 < entry.lower < entry.ratio
    assert entry.more is None


def test_when_the_time_is_up_it_says_what_more_would_decide(run_gate: RunGate) -> None:
    result = run_gate(0.05, noise=0.04, max_seconds=1e-9)
    assert (result.verdict, result.exit_code, result.stopped) == ("inconclusive", 3, "time is up")
    assert (result.batches[0].more, len(result.pair_seconds)) == (10, 1)
    assert "about 10 more pairs of processes would decide" in text_from_gate(result)


def test_several_models_are_decided_together_each_with_its_verdict(run_gate: RunGate, make_model: MakeModel) -> None:
    run_gate(0.0, noise=0.004)  # leaves its made-up pairs in place
    slower = {"head": 0}

    def take(
        base: WorkerRequest, head: WorkerRequest, numbers: range, *, length: Length, warmup: int
    ) -> tuple[Pair, ...]:
        assert warmup == 10
        factor = 1.33 if base.path != head.path else 1.0
        slower["head"] += len(numbers) * (factor > 1)
        turns = length.turns or 2
        sides = Sides(*(Taken((ms,) * TURN * turns) for ms in (10.0, 10.0 * factor)))
        return (Pair({1: sides}, turns, (INFO, INFO), 4.0, 1.5, 1),) * len(numbers)

    models = [find_subject(make_model(f"{name}.onnx", "y = Relu(x)"), "onnxruntime") for name in ("one", "other")]
    # With one thread, four pairs start together, but none beyond the look that decides.
    pairs = [sided(models[0], head, (1,), threads=1) for head in models]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_module, "take_pairs", take)
        found = interleave_models(pairs, GateSettings())
    assert (found.verdict, found.exit_code) == ("regressed", 1)
    assert [gate.verdict for gate in found.gates] == ["holds", "regressed"]
    # Both share the errors: 2^-11 is more than the first look of a half of 0.1 % may spend, so the second one decides.
    assert [gate.families for gate in found.gates] == [2, 2]
    assert slower["head"] == len(found.gates[1].pair_seconds) == 15
    assert gate_line(found) == "regressed (other.onnx): of 2 models 1 holds, 1 regressed"
    assert text_from_gate(found).splitlines()[0] == "`one.onnx` to `one.onnx`"
    assert markdown_from_gate(found).startswith("## Latency: regressed (other.onnx)")
    suites = ElementTree.fromstring(junit_from_gate(found))
    assert [suite.get("failures") for suite in suites] == ["0", "1"]
    assert value_from_json(json_from_value(found), Gates, place="test") == found


def test_one_regressed_batch_decides(run_gate: RunGate) -> None:
    result = run_gate(0.33, sizes=(8, 1))
    assert [entry.batch for entry in result.batches] == [1, 8]
    assert result.verdict == "regressed"


def test_the_file_keeps_every_sample_and_the_verdict_follows_from_it(run_gate: RunGate) -> None:
    result = run_gate(0.33)
    again = value_from_json(json_from_value(result), GateResult, place="test")
    assert again == result
    ratios = log_ratios(again, 1)
    assert ratios == pytest.approx([np.log(1.33)] * 11, abs=0.04)
    assert again.base.settings.isolation == "pair"


def test_pairs_after_the_first_look_are_longer_and_none_can_be_shortened(run_gate: RunGate) -> None:
    result = run_gate(0.06, noise=0.03)
    assert (result.verdict, len(result.turns)) == ("regressed", len(result.pair_seconds))
    assert len(result.turns) > 11
    assert result.turns == (2,) * 11 + (4,) * (len(result.turns) - 11)
    assert result.cores == (1,) * len(result.turns)
    data = json.loads(json_from_value(result))
    for series in (data["base"]["series"][12], data["head"]["series"][12]):
        series["samples_ms"] = series["samples_ms"][:-3]
    with pytest.raises(GpusqError, match="batch 1: a pair has other samples than its turns say"):
        value_from_json(json.dumps(data).encode(), GateResult, place="test")
    data["cores"].pop()
    with pytest.raises(GpusqError, match=f"{len(result.turns) - 1} cores of {len(result.turns)} pairs"):
        value_from_json(json.dumps(data).encode(), GateResult, place="test")


def test_cpu_time_decides_where_it_is_there_and_wall_time_is_told(run_gate: RunGate) -> None:
    busy = run_gate(0.12, noise=0.4, on_cpu=0.33)
    (entry,) = busy.batches
    assert (busy.verdict, entry.clock, len(busy.pair_seconds)) == ("regressed", "CPU time", 11)
    assert entry.ratio == pytest.approx(1.33)
    assert entry.wall is not None
    assert entry.wall.verdict == "inconclusive"
    assert "decided by CPU time, which leaves out waiting for a core; wall time: 10.000 to" in text_from_gate(busy)
    assert log_ratios(busy, 1) == pytest.approx([np.log(1.33)] * 11)
    assert noise_of(busy).clock == "CPU time"


def test_a_head_that_only_waits_longer_holds_with_a_warning(run_gate: RunGate) -> None:
    result = run_gate(0.33, on_cpu=0.0)
    assert result.verdict == "holds"
    for text in (text_from_gate(result), markdown_from_gate(result)):
        assert "batch 1: warning: by wall time head is slower by more than the budget" in text
    assert "warning" not in text_from_gate(run_gate(0.0, noise=0.004, on_cpu=0.0))


@pytest.mark.parametrize("name", ["max_regression", "max_seconds", "max_iterations", "warmup"])
def test_senseless_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"budget|needs"):
        GateSettings(**{name: -1})


def test_markdown_has_a_row_per_batch_and_junit_a_case(run_gate: RunGate) -> None:
    result = run_gate(0.33, sizes=(1, 8))
    lines = markdown_from_gate(result).splitlines()
    assert lines[0].startswith("### Latency: regressed: +3")
    assert len([line for line in lines if line.endswith("| regressed |")]) == 2
    suite = ElementTree.fromstring(junit_from_gate(result))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "2", "0")
    assert [case.get("name") for case in suite] == ["latency at batch 1", "latency at batch 8"]
    assert "at least +" in str(suite[0][0].get("message"))
    undecided = ElementTree.fromstring(junit_from_gate(run_gate(0.03, noise=0.5, max_seconds=1e-9)))[0]
    assert (undecided.get("failures"), undecided.get("skipped")) == ("0", "1")


def test_noise_says_what_the_machine_sees_and_is_about_right(run_gate: RunGate) -> None:
    result = run_gate(0.0, noise=0.02, fixed_pairs=200)
    noise = noise_of(result)
    assert (noise.pairs, noise.pair_seconds, noise.load) == (200, 4.0, 1.5)
    assert noise.batches[0].spread == pytest.approx(0.02, rel=0.25)
    # 300 s are 75 pairs, the last look at 64, the seventh: z(1 - 0.001/56) + z(0.99) = 4.13 + 2.33 times 0.02 / 8.
    assert noise.smallest_effect(1, 300) == pytest.approx(0.0162, rel=0.25)
    assert noise.smallest_effect(1, 40) is None
    assert noise.smallest_effect(2, 300) is None
    assert "in 300 s this machine sees +1." in text_from_gate(result, noise)
    other = value_from_json(json_from_value(noise).replace(b'"cores": ', b'"cores": 1'), MachineNoise, place="test")
    assert "calibrated elsewhere, so it says nothing here: cores: 1" in text_from_gate(result, other)


def test_pairs_without_a_core_of_their_own_are_told_and_have_another_noise(run_gate: RunGate) -> None:
    shared = run_gate(0.0, noise=0.004, on_cpu=0.0)
    apart = msgspec.structs.replace(shared, cores=(None,) * len(shared.cores))
    for text in (text_from_gate(apart), markdown_from_gate(apart)):
        assert f"{len(shared.cores)} pairs of processes couldn't share a core" in text
    assert "couldn't share a core" not in text_from_gate(shared)
    assert unlike(noise_of(shared), shared) == ()
    assert unlike(noise_of(apart), shared) == ("pairs: A B B A calibrated, A B B A on a shared core here",)
    older = json.loads(json_from_value(noise_of(shared)))
    del older["pairing"]
    found = value_from_json(json.dumps(older).encode(), MachineNoise, place="test")
    assert unlike(found, shared) == ("pairs: turn by turn calibrated, A B B A on a shared core here",)


def test_outliers_hardly_widen_the_spread() -> None:
    values = 0.02 * np.random.default_rng(0).standard_normal(60)
    wild = values.copy()
    wild[:4] = [2.0, -3.0, 1.5, -0.9]
    assert spread_of(wild) < 1.6 * spread_of(values)


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_a_planted_slowdown_is_caught_by_real_processes(make_model: MakeModel, tmp_path: Path) -> None:
    body = " ".join(["z0 = Exp(x)", *(f"z{i} = Sqrt(z{i - 1})" for i in range(1, 400)), "y = Relu(z399)"])
    base, head = make_model("base.onnx", "y = Relu(x)"), make_model("head.onnx", body)
    files = {name: tmp_path / name for name in ("gate.json", "junit.xml", "summary.md")}
    files["summary.md"].write_text("before\n")
    done = _run(
        *("--interleave", base, head, "--threads", 1, "--json", files["gate.json"]),
        *("--junit", files["junit.xml"], "--summary", files["summary.md"]),
    )
    assert done.exit_code == 1, done.output
    assert done.stdout.splitlines()[-1].startswith("regressed: +")
    result = read_value(files["gate.json"], GateResult)
    assert (result.base.model, result.head.model) == ("base.onnx", "head.onnx")
    assert len(result.pair_seconds) == 11
    assert files["summary.md"].read_text().startswith("before\n### Latency: regressed")
    assert ElementTree.parse(files["junit.xml"]).getroot()[0].get("failures") == "1"


@pytest.mark.slow
def test_noise_is_calibrated_and_kept(make_model: MakeModel, tmp_path: Path) -> None:
    target = tmp_path / "noise.json"
    done = _run(make_model("m.onnx", "y = Relu(x)"), "--threads", 1, "--calibrate-noise", target)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("20 pairs of m.onnx with itself")
    assert read_value(target, MachineNoise).pairs == 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a model, or two after --interleave"),
        (("m", "--interleave", "a", "b"), "give a model, or two after --interleave, not both"),
        (("--interleave", "a", "b", "--repeats", "3"), "--repeats is for one model"),
        (("m", "--max-seconds", "3"), "--max-seconds goes with --interleave"),
        (("m", "--junit", "x.xml"), "--junit goes with --interleave"),
        (("--interleave", "a", "b", "--calibrate-noise", "x"), "--calibrate-noise takes one model"),
        (("--interleave", "a", "b", "--max-seconds", "0"), "--max-seconds"),
    ],
)
def test_options_of_the_other_way_are_usage_errors(arguments: tuple[str, ...], said: str) -> None:
    done = _run(*arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_nothing_of_somebody_elses_is_overwritten(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model("m.onnx", "y = Relu(x)")
    precious = tmp_path / "precious"
    for option in ("--json", "--junit"):
        precious.write_bytes(b"<?xml something else")
        done = _run("--interleave", model, model, option, precious)
        assert isinstance(done.exception, GpusqError)
        assert "it was left alone" in str(done.exception)
        assert precious.read_bytes() == b"<?xml something else"
    done = _run(model, "--calibrate-noise", precious)
    assert "it was left alone" in str(done.exception)


def test_json_on_stdout_is_one_object(run_gate: RunGate, make_model: MakeModel) -> None:
    run_gate(0.33)  # leaves its made-up pairs in place
    model = make_model("m.onnx", "y = Relu(x)")
    done = _run("--interleave", model, model, "--json")
    assert json.loads(done.stdout)["verdict"] == "regressed"
    assert done.exit_code == 1
    several = _run("--interleave", model, model, "--interleave", model, model, "--json")
    assert [gate["verdict"] for gate in json.loads(several.stdout)["gates"]] == ["regressed", "regressed"]
    assert len(_run("--interleave", model, model, "-q").stdout.splitlines()) > 1
    run_gate(0.0, noise=0.004)
    fine = _run("--interleave", model, model, "--quiet")
    assert (fine.exit_code, len(fine.stdout.splitlines())) == (0, 1)
    assert fine.stdout.startswith("holds: ")
