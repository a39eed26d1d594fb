"""The command on a real, tiny ONNX model and ONNX Runtime."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from commands import run_main

from gpusq_deploy.artifacts.base import digest_of_file, read_value, value_from_json
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.runs import Runs
from gpusq_deploy.cli.bench import command, main as bench_main
from gpusq_deploy.cli.compare import main as compare_main
from gpusq_deploy.cli.validate import main as validate_main
from gpusq_deploy.errors import GpusqError

FEW = ("--repeats", "2", "--iterations", "3", "--warmup", "1")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> tiny (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }'
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


def _bench(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


def test_the_table_goes_to_stdout_and_the_choice_is_said(model: Path) -> None:
    result = _bench(str(model), "--batch", "1,4", *FEW)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].startswith("model    tiny.onnx  sha256:")
    assert str(model.parent) not in result.stdout
    assert "runtime: onnxruntime (" in result.stderr
    assert "standard-normal, made up from seed 0" in result.stdout


def test_bare_json_is_one_object_on_stdout(model: Path) -> None:
    result = _bench(str(model), "--batch", "4,1", "--threads", "1", *FEW, "--json")
    runs = value_from_json(result.stdout.encode(), Runs, place="stdout")
    assert [(entry.repeat, entry.batch) for entry in runs.series] == [(0, 4), (0, 1), (1, 1), (1, 4)]
    assert {len(entry.samples_ms) for entry in runs.series} == {3}
    assert (runs.runtime.name, runs.runtime.threads) == ("onnxruntime", 1)
    assert (runs.model, runs.model_digest) == ("tiny.onnx", digest_of_file(model))


def test_json_to_a_file_keeps_the_table_and_may_be_repeated(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "runs.json"
    for _ in range(2):
        result = _bench(str(model), *FEW, "--json", str(target))
        assert result.exit_code == 0
        assert result.stdout.startswith("model    tiny.onnx")
        assert read_value(target, Runs).batches == (1,)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.onnx", "runs.json"}


def test_another_file_is_never_overwritten(model: Path, tmp_path: Path) -> None:
    precious = tmp_path / "other.onnx"
    precious.write_bytes(b"weights")
    result = _bench(str(model), *FEW, "--json", str(precious))
    assert isinstance(result.exception, GpusqError)
    assert "it was left alone" in str(result.exception)
    assert precious.read_bytes() == b"weights"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "runs.json"
    assert _bench(str(model), *FEW, "--json", str(target)).exit_code == 0
    before = target.read_bytes()

    def full(_self: Path, _target: Path) -> Path:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "replace", full)
    result = _bench(str(model), *FEW, "--json", str(target))
    assert isinstance(result.exception, GpusqError)
    assert "cannot write the file: no space left" in str(result.exception)
    assert result.stdout.startswith("model    tiny.onnx"), "the table must not be lost with the file"
    assert target.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.onnx", "runs.json"}


def test_a_missing_folder_is_noticed_before_measuring(model: Path, tmp_path: Path) -> None:
    result = _bench(str(model), "--json", str(tmp_path / "no" / "runs.json"))
    assert isinstance(result.exception, GpusqError)
    assert "does not exist" in str(result.exception)
    assert result.stderr == ""


def test_a_bundle_gives_batches_and_their_range(model: Path, write_bundle: Callable[..., Path]) -> None:
    folder = write_bundle(BatchRange(minimum=1, optimum=2, maximum=4), model=model)
    runs = json.loads(_bench(str(folder), *FEW, "--json").stdout)
    assert runs["model"] == "bundle/model.onnx"
    assert {series["batch"] for series in runs["series"]} == {1, 2}
    refused = _bench(str(folder), "--batch", "5", *FEW)
    assert "can't take batch 5; allowed: 1 to 4" in str(refused.exception)


def test_threads_belong_to_onnxruntime(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = model.with_suffix(".plan")
    plan.write_bytes(b"")

    def nothing_against(_name: str) -> None:
        return None

    monkeypatch.setattr("gpusq_deploy.engines.backend_choice.why_not", nothing_against)
    result = _bench(str(plan), "--threads", "2")
    assert isinstance(result.exception, GpusqError)
    assert "has no number of threads" in str(result.exception)


@pytest.mark.parametrize("batches", ["", "0", "1,", "-1", "1;2", "2,2", "x", "9" * 5000])
def test_bad_batches_are_usage_errors(model: Path, batches: str) -> None:
    assert _bench(str(model), "--batch", batches).exit_code == 2


@pytest.mark.parametrize("arguments", [("--repeats", "0"), ("--runtime", "cuda"), ("--iterations", "x")])
def test_bad_options_are_usage_errors(model: Path, arguments: tuple[str, ...]) -> None:
    assert _bench(str(model), *arguments).exit_code == 2


@pytest.mark.parametrize("main", [bench_main, compare_main, validate_main])
@pytest.mark.parametrize("name", ["no-such.onnx", "no-such.plan", "no-such.gpusq", "no-such.pt", "link.pt"])
def test_a_missing_file_is_one_error_in_all_commands(main: Callable[[], None], name: str, tmp_path: Path) -> None:
    (tmp_path / "link.pt").symlink_to("nowhere")
    done = run_main(main, tmp_path / name, *([tmp_path / name] if main is compare_main else []))
    said = "the link leads nowhere" if name == "link.pt" else "no such file or folder"
    assert (done.code, done.out) == (5, "")
    assert done.err == f"error: {said}\n  where: {tmp_path / name}\n  try:   check the path\n"


def test_a_missing_reference_is_noticed_before_anything_runs(model: Path, tmp_path: Path) -> None:
    result = _bench(str(model), "--reference", str(tmp_path / "none.onnx"))
    assert "no such file or folder" in str(result.exception)


@pytest.mark.parametrize("name", ["bench", "compare"])
def test_help_imports_nothing_heavy(name: str) -> None:
    code = (
        f"import sys; from gpusq_deploy.cli.{name} import command\n"
        "command.main(['--help'], 'gpusq', standalone_mode=False)\n"
        "print(sorted({'torch', 'tensorrt', 'tensorrt_rtx', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: gpusq ")
    assert done.stdout.splitlines()[-1] == "[]"
