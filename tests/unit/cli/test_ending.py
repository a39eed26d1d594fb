"""How commands end that don't end well: codes, sentences, and the same as JSON."""

from __future__ import annotations

import errno
import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import bundles
import pytest
from commands import Finished, run_main

from gpusq_deploy.__main__ import COMMANDS
from gpusq_deploy.cli.bench import main as bench
from gpusq_deploy.cli.compare import main as compare
from gpusq_deploy.cli.inspect import main as inspect

READ = "gpusq_deploy.artifacts.read_value"


def main_of(command: str) -> Any:
    return importlib.import_module(f"gpusq_deploy.cli.{command}").main


def failing(error: BaseException, *options: str, debug: bool = False) -> Finished:
    with mock.patch(READ, side_effect=error):  # any file that is there
        return run_main(compare, __file__, __file__, *options, debug=debug)


def test_a_bug_is_no_verdict_and_its_report_is_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = failing(TypeError("Encoding objects of type\nnumpy.float64 is unsupported"))
    assert done.code == 70
    version = metadata.version("gpusq-deploy")
    first = f"this is a bug in gpusq-deploy {version}: TypeError: Encoding objects of type numpy.float64 is unsupported"
    lines = done.err.splitlines()
    assert lines[0] == f"error: {first}"
    assert lines[1].startswith("  where: api/comparing.py, line ")
    assert len(lines) == 3
    (report,) = tmp_path.iterdir()
    assert str(report) in lines[2]
    written = report.read_text("utf-8")
    assert "Traceback (most recent call last)" in written
    assert f"numpy {metadata.version('numpy')}" in written


@pytest.mark.parametrize(("options", "debug"), [(("--verbose",), False), ((), True)])
def test_a_traceback_is_shown_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], debug: bool
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = failing(KeyError("x"), *options, debug=debug)
    assert (done.code, list(tmp_path.iterdir())) == (70, [])
    assert "Traceback (most recent call last)" in done.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "nothing can be written: No space left on device"),
        (MemoryError(), "memory ran out"),
    ],
)
def test_a_full_machine_is_no_bug(error: BaseException, said: str) -> None:
    done = failing(error, "--json")
    assert done.code == done.json()["exit_code"] == 5
    assert done.json()["error"]["what"] == said


@pytest.mark.parametrize(
    ("error", "code"), [(TypeError("x"), 70), (KeyboardInterrupt(), 130), (AssertionError("a pass broke 2:4"), 70)]
)
def test_an_error_is_one_json_object(error: BaseException, code: int) -> None:
    done = failing(error, "--json")
    told = done.json()
    assert (done.code, told["exit_code"]) == (code, code)
    assert told["error"]["what"] in done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_usage_error_is_json_too_in_every_command(command: str) -> None:
    done = run_main(main_of(command), "--json", "--nonsense")
    told = done.json()
    assert (done.code, told["exit_code"]) == (2, 2)
    assert "--nonsense" in told["error"]["what"]
    assert "--help" in told["error"]["hint"]


@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("build", ()),
        ("calibrate", ("--calib", "random")),
        ("compress", ("--data", ".")),
        ("inspect", ()),
        ("validate", ()),
        ("compare", ("no.json",)),
    ],
)
def test_a_missing_file_is_json_too(command: str, more: tuple[str, ...]) -> None:
    done = run_main(main_of(command), "no/such.pt", *more, "--json")
    assert (done.code, done.json()["exit_code"]) == (5, 5)
    assert set(done.json()["error"]) == {"what", "place", "hint"}


def test_json_that_goes_to_a_file_leaves_stdout_to_the_table(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "m.gpusq")
    (tmp_path / "mine.json").write_text("{}")
    done = run_main(bench, bundle, "--json", tmp_path / "mine.json")
    assert (done.code, done.out) == (5, "")
    assert run_main(bench, bundle, "--threads", "0", "--json").json()["exit_code"] == 2


def test_quiet_leaves_the_result_and_errors(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "m.gpusq")
    few = ("--repeats", "1", "--iterations", "1", "--warmup", "0")
    assert run_main(bench, bundle, *few).err != ""
    done = run_main(bench, bundle, *few, "--quiet")
    assert (done.code, done.err) == (0, "")
    assert "median ms" in done.out
    assert "not a bundle" in run_main(inspect, tmp_path, "-q").err


@pytest.mark.slow
@pytest.mark.parametrize("words", [("inspect", "m.gpusq"), ("inspect", "m.gpusq", "--json"), ("validate", "-h")])
def test_a_reader_that_has_seen_enough_ends_a_command_in_silence(tmp_path: Path, words: tuple[str, ...]) -> None:
    bundles.write(tmp_path / "m.gpusq")
    with subprocess.Popen(
        [sys.executable, "-m", "gpusq_deploy", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=120) == 141
