"""Latencies over time: a file that only grows, and where its level changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike
from gpusq_deploy.errors import GpusqError

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import Runs
    from gpusq_deploy.benchmarks import HistoryReport


def add_to_history(runs: Runs, history: PathLike, *, commit: str | None = None) -> Path:
    """Append a line for each batch size of some runs to a history, as gpusq-bench --history does.

    Args:
        runs: What was measured, see `bench`.
        history: The file, which is made where it isn't there; or a folder, which gets one for each model, runtime and
            machine.
        commit: What was measured; None: the commit that a CI job builds, or of the repository around the current
            folder, if any.

    Returns:
        The file.

    Raises:
        GpusqError: It can't be written, or holds something else than a history.
    """
    from gpusq_deploy import benchmarks
    from gpusq_deploy.artifacts import require_folder

    path = Path(history)
    path = path / benchmarks.file_name(runs) if path.is_dir() else path
    require_folder(path)
    benchmarks.append_entries(path, benchmarks.entries_of(runs, commit or benchmarks.current_commit()))
    return path


def compare_history(history: PathLike, *, max_regression: float = 0.03, html: PathLike | None = None) -> HistoryReport:
    """Where did the level of latencies change? As gpusq-compare --history tells it.

    Args:
        history: The file.
        max_regression: The budget as a share, for the newest change of each series.
        html: Where to write the series as a page.

    Returns:
        The verdict, and each series with its change points; `exit_code` is gpusq-compare's.

    Raises:
        GpusqError: The file can't be read or holds no measurement; the page can't be written; or ruptures, which finds
            the changes, isn't installed.
    """
    from gpusq_deploy import benchmarks
    from gpusq_deploy.bundle import require_page, save_page

    if html is not None:
        require_page(Path(html))
    found = benchmarks.read_history(Path(history))
    if not found.entries:
        raise GpusqError(
            f"the file holds no measurement in {len(found.damaged)} lines",
            place=str(history),
            hint="gpusq-bench MODEL --history FILE adds one",
        )
    report = benchmarks.changes_of(found.entries, max_regression, found.damaged)
    if html is not None:
        save_page(Path(html), benchmarks.history_page(report))
    return report
