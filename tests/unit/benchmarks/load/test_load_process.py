"""A real process under load, on a tiny model; and the command."""

from __future__ import annotations

from pathlib import Path

import msgspec
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result

from gpusq_deploy.artifacts import read_value, value_from_json
from gpusq_deploy.benchmarks.load.report import text_from_load
from gpusq_deploy.benchmarks.load.values import Load, LoadTrial, TrialRequest
from gpusq_deploy.benchmarks.load.worker import MODULE
from gpusq_deploy.benchmarks.worker import WorkerRequest
from gpusq_deploy.benchmarks.worker_process import WorkerProcess
from gpusq_deploy.cli.bench import command
from gpusq_deploy.errors import GpusqError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "tiny.onnx", "Relu")


def save(path: Path, operator: str) -> Path:
    text = f'<ir_version: 8, opset_import: ["" : 17]> t (float[N, 3] x) => (float[N, 3] y) {{ y = {operator}(x) }}'
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


def request_of(path: Path) -> WorkerRequest:
    return WorkerRequest(path=str(path), runtime="onnxruntime", reason="a test", batches=(2,), threads=1)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_trials_of_one_process_keep_every_query(model: Path) -> None:
    offline = TrialRequest(batch=2, streams=2, seconds=0.2, warmup=1)
    server = msgspec.structs.replace(offline, rate=200.0)
    with WorkerProcess(request_of(model), MODULE) as worker:
        worker.opened()
        first, second = worker.load(offline), worker.load(server)
    assert (first.due_ms, first.unanswered) == ((), 0)
    # Each stream begins no query after the time is up.
    assert max(first.started_ms) < 200 + 100
    assert len(first.done_ms) > 10
    assert second.unanswered == 0
    assert len(second.due_ms) == len(second.done_ms) > 10
    assert all(due <= start <= done for due, start, done in zip(*times(second), strict=True))
    assert list(second.due_ms) == sorted(second.due_ms)


def times(trial: LoadTrial) -> tuple[tuple[float, ...], ...]:
    return trial.due_ms, trial.started_ms, trial.done_ms


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 3])
def test_an_error_of_a_stream_comes_home(tmp_path: Path, streams: int) -> None:
    # The logarithm of standard-normal inputs is NaN for half of them.
    with WorkerProcess(request_of(save(tmp_path / "log.onnx", "Log")), MODULE) as worker:
        worker.opened()
        with pytest.raises(GpusqError, match="are not finite at batch 2"):
            worker.load(TrialRequest(batch=2, streams=streams, seconds=1))


@pytest.mark.slow
def test_the_command_writes_every_query_and_a_table(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "load.json"
    result = bench(model, "--rate", 100, "--streams", 2, "--duration", 0.3, "--batch", 4, "--json", target)
    assert result.exit_code == 0, result.output
    load = read_value(target, Load)
    (trial,) = load.trials
    assert (load.scenario, trial.request.rate, trial.request.batch, trial.request.streams) == ("server", 100.0, 4, 2)
    assert result.stdout.rstrip() == text_from_load(load)
    assert "taken    server, 2 streams x batch 4, after 10 warm-ups each" in result.stdout
    assert len(load.states) == 1


@pytest.mark.slow
def test_a_search_begins_offline_and_says_its_answer(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpusq_deploy.benchmarks.load.searching.FEWEST_QUERIES", 20)
    monkeypatch.setattr("gpusq_deploy.benchmarks.load.searching.STEPS", 2)
    monkeypatch.setattr("gpusq_deploy.benchmarks.load.recording.STEPS", 2)
    result = bench(model, "--latency-limit", 0.000001, "--duration", 0.1, "--json")
    assert result.exit_code == 0, result.output
    load = value_from_json(result.stdout.encode(), Load, place="stdout")
    assert [trial.request.rate is None for trial in load.trials] == [True, False, False]
    assert load.trials[1].request.rate == pytest.approx(2 * (load.trials[2].request.rate or 0))
    assert "no rate that was tried keeps the p99 to 1e-06 ms" in text_from_load(load)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--offline", "--rate", "5"), "--offline and --rate are two ways to measure: give one"),
        (("--rate", "5", "--latency-limit", "3"), "--rate and --latency-limit are two ways to measure: give one"),
        (("--offline", "--repeats", "3"), "--repeats doesn't go with --offline"),
        (("--offline", "--iterations", "3"), "--iterations doesn't go with --offline"),
        (("--offline", "--history", "h.jsonl"), "--history doesn't go with --offline"),
        (("--streams", "3"), "--streams goes with --offline, --rate or --latency-limit"),
        (("--rate", "nan"), "'nan' is not a number above 0"),
        (("--latency-limit", "inf"), "'inf' is not a number above 0"),
        (("--offline", "--duration", "1e6"), "'1e6' is not a number above 0, and at most 86400"),
        (("--rate", "1e9"), "1e+09 queries/s over 10 s are 1e+10; 1000000 are kept at most"),
        (("--energy", "nan"), "'nan' is not a number above 0, and at most 3600"),
        (("--offline", "--batch", "1,2"), "a query has one batch size: give --batch one"),
    ],
)
def test_what_can_not_be_asked_is_a_usage_error(model: Path, arguments: tuple[str, ...], said: str) -> None:
    result = bench(model, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
