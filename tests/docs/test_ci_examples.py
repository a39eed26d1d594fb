"""The examples for GitHub Actions and GitLab: their gate is a command of ours, and runs on a CPU."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import bundles
import click
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner

from gpusq_deploy.artifacts.base import read_value
from gpusq_deploy.benchmarks.gate import GateResult
from gpusq_deploy.bundle.report.expectations import load_budgets
from gpusq_deploy.cli.bench import command as bench
from gpusq_deploy.cli.build import command as build
from gpusq_deploy.cli.compare import command as compare

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "ci"
EXAMPLES = sorted(FOLDER.glob("*.yml"))
COMMANDS: dict[str, click.Command] = {"gpusq-build": build, "gpusq-compare": compare, "gpusq-bench": bench}


def commands_of(path: Path) -> list[list[str]]:
    """The words of every command of ours, its continued lines joined."""
    text = path.read_text("utf-8").replace("\\\n", " ")
    text = re.sub(r">-\n\s+(.+)\n\s+(--json.+)", r"\1 \2", text)
    lines = (line.strip().removeprefix("- ") for line in text.splitlines())
    return [shlex.split(line) for line in lines if line.startswith(tuple(COMMANDS))]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_command_is_one_of_ours_with_options_that_it_has(path: Path) -> None:
    found = commands_of(path)
    assert [words[0] for words in found] == ["gpusq-build", "gpusq-build", "gpusq-compare", "gpusq-bench"]
    for name, *words in found:
        COMMANDS[name].make_context(name, list(words), resilient_parsing=False)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_gate_without_timing_runs_with_the_budgets_of_the_example(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base.gpusq", "head.gpusq"):
        bundles.write(tmp_path / name)
    budgets = FOLDER / "budgets.toml"
    assert load_budgets(budgets).engines
    (words,) = [words[1:] for words in commands_of(path) if words[0] == "gpusq-compare"]
    words[words.index("--expect") + 1] = str(budgets)
    done = CliRunner().invoke(compare, [word.replace("$GITHUB_STEP_SUMMARY", "summary.md") for word in words])
    # A bundle without engines and a verification can't hold all of them.
    assert done.exit_code == 1, done.output
    assert "ok      bundle: preprocessing same: same" in done.output
    assert ElementTree.parse("changed.xml").getroot()[0].get("failures") == "2"


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_gate_catches_a_planted_slowdown(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the GPU: the same command on two ONNX models, where it says two bundles."""
    monkeypatch.chdir(tmp_path)
    slow = " ".join(["z0 = Exp(x)", *(f"z{i} = Sqrt(z{i - 1})" for i in range(1, 400)), "y = Relu(z399)"])
    for name, body in (("base.onnx", "y = Relu(x)"), ("head.onnx", slow)):
        text = f'<ir_version: 8, opset_import: ["" : 17]> t (float[N, 3] x) => (float[N, 3] y) {{ {body} }}'
        Path(name).write_bytes(onnx.parser.parse_model(text).SerializeToString())
    words = [
        word.replace(".gpusq", ".onnx").replace("$GITHUB_STEP_SUMMARY", "summary.md") for word in commands_of(path)[-1]
    ]
    done = CliRunner().invoke(bench, [*words[1:], "--threads", "1"])
    assert done.exit_code == 1, done.output
    assert read_value(Path("gate.json"), GateResult).verdict == "regressed"
    assert ElementTree.parse("gate.xml").getroot()[0].get("failures") == "1"
