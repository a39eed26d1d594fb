from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

from gpusq_deploy.artifacts.base import json_from_value
from gpusq_deploy.artifacts.runs import Environment, MeasureSettings, Runs, RuntimeInfo, Series
from gpusq_deploy.cli.compare import command
from gpusq_deploy.errors import GpusqError

# importorskip hands back Any: scipy ships no types. It is always there, as scikit-learn's dependency.
stats = pytest.importorskip("scipy.stats")


def _write(path: Path, *, factor: float = 1.0, spread: float = 0.002, cpu: str = "Some CPU") -> Path:
    rng = np.random.default_rng(len(path.name))
    series = tuple(
        Series(
            batch=1,
            repeat=repeat,
            warmup=1,
            samples_ms=tuple((10 * factor * np.exp(spread * rng.standard_normal() + noise)).tolist()),
        )
        for repeat, noise in enumerate(0.002 * rng.standard_normal((5, 12)))
    )
    runs = Runs(
        created="2026-01-01T00:00:00+00:00",
        model="model.onnx",
        model_digest="sha256:00",
        runtime=RuntimeInfo(name="onnxruntime", version="1.0", device="cpu", reason="asked for"),
        environment=Environment(
            cpu=cpu, cores=2, cpu_quota=None, os="L", python="3", gpu=None, gpu_driver=None, clocks_locked=None
        ),
        settings=MeasureSettings(warmup=1, iterations=12, repeats=5),
        series=series,
    )
    path.write_bytes(json_from_value(runs))
    return path


def _compare(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


@pytest.mark.parametrize(
    ("factor", "cpu", "code", "verdict"),
    [
        (1.0, "Some CPU", 0, "holds"),
        (0.8, "Some CPU", 0, "holds"),
        (1.1, "Some CPU", 1, "regressed"),
        (1.03, "Some CPU", 3, "inconclusive"),
        (1.0, "Other CPU", 4, "not comparable"),
    ],
)
def test_the_exit_code_is_the_verdict(tmp_path: Path, factor: float, cpu: str, code: int, verdict: str) -> None:
    base, head = _write(tmp_path / "base.json"), _write(tmp_path / "the-head.json", factor=factor, cpu=cpu)
    result = _compare(str(base), str(head))
    assert result.exit_code == code
    assert result.stdout.splitlines()[-1] == f"{verdict} (budget +3.00%)"
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("text", "share"), [("3%", 0.03), ("3", 0.03), ("0.5%", 0.005), ("0", 0.0), (" 12.5 %", 0.125), ("25%", 0.25)]
)
def test_budgets_are_percentages(tmp_path: Path, text: str, share: float) -> None:
    base = _write(tmp_path / "base.json")
    result = _compare(str(base), str(base), "--max-regression", text, "--json")
    assert json.loads(result.stdout)["max_regression"] == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "three", "-1%", "nan", "inf", "3%%"])
def test_other_budgets_are_usage_errors(tmp_path: Path, text: str) -> None:
    base = _write(tmp_path / "base.json")
    assert _compare(str(base), str(base), "--max-regression", text).exit_code == 2


@pytest.mark.parametrize(
    ("text", "asked"), [("0.03", True), ("0.5", True), ("0.03%", False), ("3", False), ("0", False)]
)
def test_a_budget_that_may_be_meant_as_a_share_is_asked_about(tmp_path: Path, text: str, asked: bool) -> None:
    base = _write(tmp_path / "base.json")
    result = _compare(str(base), str(base), "--max-regression", text, "--json")
    assert json.loads(result.stdout)["max_regression"] == pytest.approx(float(text.removesuffix("%")) / 100)
    assert bool(result.stderr) == asked
    if text == "0.03":
        assert result.stderr == "warning: --max-regression 0.03 means 0.03 %: write 3% if that was meant, or 0.03%\n"


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (0.8, 3), (1.1, 3)])
def test_a_steady_machine_is_neither_slower_nor_faster(tmp_path: Path, factor: float, code: int) -> None:
    base, again = _write(tmp_path / "base.json"), _write(tmp_path / "base-again.json", factor=factor)
    result = _compare(str(base), str(again), "--steady", "--json")
    assert (result.exit_code, json.loads(result.stdout)["verdict"]) == (code, "not steady" if code else "steady")
    shown = _compare(str(base), str(again), "--steady").stdout
    assert shown.splitlines()[-1] == f"{'not steady' if code else 'steady'} (budget +/-3.00%)"
    assert shown.isascii()


def test_a_folder_that_is_no_bundle_is_told_what_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.gpusq").mkdir()
    error = _compare(str(tmp_path / "a.gpusq"), str(tmp_path / "a.gpusq")).exception
    assert isinstance(error, GpusqError)
    assert "a folder without manifest.json isn't what gpusq-compare takes" in error.what
    assert "two bundles" in str(error.hint)


def _thing(folder: Path, kind: str, name: str) -> Path:
    path = folder / name
    if kind == "bundle":
        path.mkdir()
        (path / "manifest.json").write_text('{"schema": "gpusq.bundle/1"}')
    else:
        path.write_bytes(b"something")
    return path


@pytest.mark.parametrize(
    ("kind", "name", "said", "commands"),
    [
        ("plan", "a.plan", "an engine", "gpusq-bench {} --reference MODEL.onnx --json base.json"),
        ("onnx", "a.onnx", "an ONNX model", "gpusq-bench {} --json base.json"),
        ("bundle", "a.gpusq", "a bundle", "gpusq-bench {} --json base.json"),
        ("checkpoint", "a.pt", "a checkpoint", "gpusq-build {} --int8 --calib IMAGES --out base.gpusq"),
        ("checkpoint", "a.safetensors", "a checkpoint", "gpusq-build {} "),
    ],
)
def test_what_holds_no_runs_is_told_the_commands_that_make_them(
    tmp_path: Path, kind: str, name: str, said: str, commands: str
) -> None:
    runs, other = _write(tmp_path / "runs.json"), _thing(tmp_path, kind, name)
    for arguments in ((other, runs), (runs, other)):
        error = _compare(*map(str, arguments)).exception
        assert isinstance(error, GpusqError)
        assert error.what.startswith(f"{said} isn't what gpusq-compare takes")
        place = "base" if arguments[0] == other else "head"
        assert commands.format(other).replace("base", place) in str(error.hint)
        compared = [str(runs) if path == runs else f"{place}.json" for path in arguments]
        assert str(error.hint).endswith(f"&& gpusq-compare {' '.join(compared)}")


def test_a_larger_budget_lets_more_pass(tmp_path: Path) -> None:
    base, head = _write(tmp_path / "base.json"), _write(tmp_path / "the-head.json", factor=1.1)
    assert _compare(str(base), str(head), "--max-regression", "20%").exit_code == 0


def test_json_is_one_object_with_the_same_verdict(tmp_path: Path) -> None:
    base, head = _write(tmp_path / "base.json"), _write(tmp_path / "the-head.json", factor=1.1)
    result = _compare(str(base), str(head), "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["verdict"], found["schema"]) == (1, "regressed", "gpusq.comparison/1")
    assert found["batches"][0]["p_slower"] == pytest.approx(1 / 252)


@pytest.mark.parametrize(("head", "code"), [("the-head.json", 1), ("broken.json", 5), ("none.json", 5), (".", 5)])
def test_the_process_exits_with_the_code(tmp_path: Path, head: str, code: int) -> None:
    base = _write(tmp_path / "base.json")
    _write(tmp_path / "the-head.json", factor=1.1)
    (tmp_path / "broken.json").write_text("{}")
    arguments = [sys.executable, "-m", "gpusq_deploy.cli.compare", str(base), str(tmp_path / head)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert (done.stdout == "") == (code == 5)


def test_several_models_are_compared_together(tmp_path: Path) -> None:
    """As two folders or as pairs of files; the p-values are adjusted over all of them."""
    names = [f"{letter * 4}.json" for letter in "abcd"]
    # One alone, of five repeats, wouldn't be proven among four: its p of 1/252 counts four times.
    slower = names[1:3]
    for folder in ("base", "head"):
        (tmp_path / folder).mkdir()
        for name in names:
            _write(tmp_path / folder / name, factor=1.3 if folder == "head" and name in slower else 1.0)
    done = _compare(str(tmp_path / "base"), str(tmp_path / "head"))
    assert done.exit_code == 1, done.output
    assert done.stdout.splitlines()[-1] == (
        "regressed (bbbb.json, cccc.json): of 4 models 2 holds, 2 regressed (budget +3.00%)"
    )
    pairs = [str(tmp_path / folder / name) for name in names for folder in ("base", "head")]
    found = json.loads(_compare(*pairs, "--json").stdout)
    p_values = [model["comparison"]["batches"][0]["p_slower"] for model in found["models"]]
    adjusted = [model["comparison"]["batches"][0]["p_adjusted"] for model in found["models"]]
    assert adjusted == pytest.approx(stats.false_discovery_control(p_values, method="bh"))
    (tmp_path / "base" / names[0]).unlink()
    lacking = _compare(str(tmp_path / "base"), str(tmp_path / "head"))
    assert "that this one lacks: aaaa.json" in str(lacking.exception)


def test_odd_paths_and_one_page_of_several_are_usage_errors(tmp_path: Path) -> None:
    base, head = _write(tmp_path / "base.json"), _write(tmp_path / "head.json")
    assert _compare(str(base)).exit_code == 2
    several = (str(base), str(head), str(base), str(head))
    assert "--html takes one pair, not 2" in _compare(*several, "--html", str(tmp_path / "page.html")).output


def test_a_summary_and_junit_beside_the_table_and_one_line_where_all_is_fine(tmp_path: Path) -> None:
    base, head = _write(tmp_path / "base.json"), _write(tmp_path / "head.json", factor=1.3)
    summary, junit = tmp_path / "summary.md", tmp_path / "junit.xml"
    done = _compare(str(base), str(head), "--summary", str(summary), "--junit", str(junit))
    assert done.exit_code == 1
    assert summary.read_text().startswith("### model.onnx: regressed: +3")
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.get("name"), suite.get("failures")) == ("gpusq-compare", "1")
    assert "slower by at least" in str(suite[0][0].get("message"))
    assert len(_compare(str(base), str(head), "-q").stdout.splitlines()) > 1
    fine = _compare(str(base), str(base), "-q")
    assert fine.stdout == "holds: +0.0% at batch 1 (budget +3.00%)\n"
    junit.write_text("mine")
    assert "it was left alone" in str(_compare(str(base), str(head), "--junit", str(junit)).exception)
