"""A history of latencies: what is written, what is read back, and where its level changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import onnx.parser
import pytest
from click.testing import CliRunner

import gpusq_deploy
from gpusq_deploy.benchmarks.history.change_points import changes_of, noise_of, positions
from gpusq_deploy.benchmarks.history.entry import HistoryEntry, current_commit, entries_of
from gpusq_deploy.benchmarks.history.file import append_entries, read_history
from gpusq_deploy.cli.bench import command as bench
from gpusq_deploy.cli.compare import command as compare
from gpusq_deploy.errors import GpusqError

Medians = npt.NDArray[np.float64]
needs_ruptures = pytest.mark.skipif(sys.version_info >= (3, 14), reason="ruptures has no release for Python 3.14 yet")
ENTRY = HistoryEntry(
    created="2026-01-01T00:00:00+00:00",
    commit="0" * 40,
    model="model.onnx",
    model_digest="sha256:00",
    runtime="onnxruntime",
    runtime_version="1.0",
    device="CPU",
    threads=1,
    cuda_graph=False,
    isolation="process",
    cpu="Some CPU",
    cores=2,
    cpu_quota=None,
    gpu=None,
    gpu_driver=None,
    os="Linux",
    python="3.11",
    gpusq_deploy="0.1.0",
    batch=1,
    samples=500,
    median_ms=10.0,
    p90_ms=11.0,
    p99_ms=None,
    variation=0.01,
)


def series(medians: Medians, **changes: object) -> list[HistoryEntry]:
    return [
        msgspec.structs.replace(
            ENTRY, median_ms=float(value), created=f"2026-01-{day:02}T00:00:00", commit=f"{day:040x}", **changes
        )
        for day, value in enumerate(medians, start=1)
    ]


def noisy(count: int, seed: int, *, step_at: int | None = None, step: float = 0.05) -> Medians:
    """Medians of 10 ms that spread by 1 %, with wild ones among them, slower by `step` from `step_at` on."""
    logs = np.log(10) + 0.006 * np.random.default_rng(seed).standard_t(3, count)
    logs[count if step_at is None else step_at :] += np.log1p(step)
    medians: Medians = np.exp(logs)
    return medians


@needs_ruptures
def test_a_planted_step_is_found_where_it_is() -> None:
    pytest.importorskip("ruptures")
    report = changes_of(series(noisy(24, 3, step_at=14)), 0.03)
    (found,) = report.series
    (change,) = found.changes
    assert (report.verdict, report.exit_code) == ("regressed", 1)
    assert found.levels == (14,)
    assert change.created.startswith("2026-01-15")
    assert (change.commit, change.last_commit) == (f"{15:040x}", f"{14:040x}")
    assert change.ratio == pytest.approx(1.05, abs=0.01)
    # An improvement, or a step within the budget, holds.
    assert changes_of(series(noisy(24, 3, step_at=14, step=-0.05)), 0.03).verdict == "holds"
    assert changes_of(series(noisy(24, 3, step_at=14)), 0.1).verdict == "holds"


@needs_ruptures
@pytest.mark.slow
def test_false_alarms_and_catches_of_many_histories() -> None:
    pytest.importorskip("ruptures")
    plain = sum(bool(positions(noisy(24, seed).tolist())) for seed in range(100))
    caught = sum(positions(noisy(24, seed, step_at=12).tolist()) in ([11], [12], [13]) for seed in range(100))
    assert plain <= 2
    assert caught >= 97


def test_noise_is_told_from_neighbours_so_that_a_step_hardly_counts() -> None:
    rng = np.random.default_rng(0)
    logs = 0.01 * rng.standard_normal(400)
    logs[200:] += 0.5
    assert noise_of(np.exp(logs).tolist()) == pytest.approx(0.01, rel=0.15)
    assert noise_of([1.0]) == 0.0


def test_a_few_measurements_are_no_level_and_other_machines_another_series() -> None:
    entries = [*series(np.full(7, 10.0)), *series(np.full(3, 20.0), cpu="Other CPU")]
    report = changes_of(entries, 0.03)
    assert [len(found.medians_ms) for found in report.series] == [7, 3]
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)
    assert "a change of level needs 8" in report.series[0].reason


def test_lines_are_only_added_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append_entries(path, [ENTRY, ENTRY])
    before = path.read_bytes()
    with path.open("ab") as stream:
        stream.write(before.splitlines()[0][:40])  # as a crash leaves it
    append_entries(path, [ENTRY])
    found = read_history(path)
    assert found.entries == (ENTRY,) * 3
    assert len(found.damaged) == 1
    assert found.damaged[0].startswith("line 3 is no measurement and was left out: ")
    assert path.read_bytes().startswith(before)


def test_nothing_of_somebody_elses_is_added_to(tmp_path: Path) -> None:
    precious = tmp_path / "notes.txt"
    precious.write_text("mine\n")
    with pytest.raises(GpusqError, match="it was left alone"):
        append_entries(precious, [ENTRY])
    assert precious.read_text() == "mine\n"


@pytest.mark.slow
def test_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    code = (
        "import sys, msgspec\n"
        "from pathlib import Path\n"
        "from gpusq_deploy.benchmarks.history.entry import HistoryEntry\n"
        "from gpusq_deploy.benchmarks.history.file import append_entries\n"
        "entry = msgspec.json.decode(sys.argv[1], type=HistoryEntry)\n"
        "for _ in range(20): append_entries(Path(sys.argv[2]), [entry])\n"
    )
    given = [sys.executable, "-c", code, msgspec.json.encode(ENTRY).decode(), str(path)]
    workers = [subprocess.Popen(given) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert read_history(path) == ((ENTRY,) * 60, ())


def test_the_commit_is_the_jobs_or_the_repositorys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_SHA", "CI_COMMIT_SHA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert current_commit() is None
    monkeypatch.setenv("CI_COMMIT_SHA", "abc")
    assert current_commit() == "abc"
    monkeypatch.setenv("GITHUB_SHA", "def")
    assert current_commit() == "def"


def test_bench_appends_and_compare_reads(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> t (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }'
    model.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    asked = (str(model), "--in-process", "--repeats", "1", "--iterations", "3", "--batch", "1,2")
    done = CliRunner().invoke(bench, [*asked, "--history", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (path,) = tmp_path.glob("m.onnx-onnxruntime-*.jsonl")
    runs = gpusq_deploy.bench(model, batches=(1, 2), in_process=True, repeats=1, iterations=3)
    assert gpusq_deploy.add_to_history(runs, path, commit="abc") == path
    entries = read_history(path).entries
    assert [(entry.batch, entry.samples) for entry in entries] == [(1, 3), (2, 3)] * 2
    assert entries[2:] == entries_of(runs, "abc")
    read = CliRunner().invoke(compare, ["--history", str(path)])
    assert read.exit_code == 3
    assert read.stdout.splitlines()[-1] == "inconclusive: 2 of 2 series"


@needs_ruptures
def test_change_points_as_json_as_text_and_as_a_page(tmp_path: Path) -> None:
    pytest.importorskip("ruptures")
    path, page = tmp_path / "history.jsonl", tmp_path / "page.html"
    append_entries(path, series(noisy(24, 3, step_at=14)))
    done = CliRunner().invoke(compare, ["--history", str(path), "--html", str(page)])
    assert done.exit_code == 1, done.output
    assert "2026-01-15T00:00:00" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("regressed: the newest of 1 changes is +")
    assert "<svg" in page.read_text()
    assert "2026-01-15" in page.read_text()
    found = json.loads(CliRunner().invoke(compare, ["--history", str(path), "--json"]).stdout)
    assert found["series"][0]["levels"] == [14]
    fine = CliRunner().invoke(compare, ["--history", str(path), "--max-regression", "20%", "-q"])
    assert (fine.exit_code, len(fine.stdout.splitlines())) == (0, 1)


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruptures", None)
    with pytest.raises(GpusqError, match="cannot import ruptures") as caught:
        changes_of(series(noisy(24, 0)), 0.03)
    assert "gpusq-deploy[history]" in str(caught.value.hint)


@pytest.mark.parametrize("arguments", [("--history", "h", "base", "head"), ("--history", "h", "--steady"), ()])
def test_a_history_goes_with_no_files(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(compare, list(arguments)).exit_code == 2
