"""Change points of a history as text, and as a page for a browser."""

from __future__ import annotations

from itertools import pairwise

from gpusq_deploy.artifacts import builtins_from_value
from gpusq_deploy.benchmarks.history.change_points import ChangePoint, HistoryReport, SeriesChanges
from gpusq_deploy.benchmarks.report import columns
from gpusq_deploy.benchmarks.sequential import SequentialVerdict
from gpusq_deploy.bundle import Standing, dots_plot, render_page

CHANGE_HEADINGS = ("from", "commit", "last before", "before ms", "after ms", "change")
_STANDINGS: dict[SequentialVerdict, Standing] = {"holds": "good", "inconclusive": "open", "regressed": "bad"}


def text_from_history(report: HistoryReport) -> str:
    """Each series with its change points and the reason; damaged lines; the verdict as the last line."""
    lines: list[str] = []
    for series in report.series:
        lines += [series.key.text, *_indented(series), ""]
    lines += [*report.damaged, ""] if report.damaged else []
    return "\n".join([*lines, history_line(report)])


def history_line(report: HistoryReport) -> str:
    """The verdict in one line."""
    worst = [series for series in report.series if series.verdict == report.verdict]
    reason = f": {worst[0].reason}" if len(report.series) == 1 else f": {len(worst)} of {len(report.series)} series"
    return f"{report.verdict}{reason}"


def history_page(report: HistoryReport) -> str:
    """The verdict, and of each series a plot whose levels differ in colour, and its change points."""
    return render_page(
        "history.html.j2",
        title="latency over time",
        verdict=(_STANDINGS[report.verdict], history_line(report)),
        headings=CHANGE_HEADINGS,
        series=[
            (series.key.text, _plot(series), [change_row(change) for change in series.changes], series.reason)
            for series in report.series
        ],
        remarks=report.damaged,
        data=builtins_from_value(report),
    )


def change_row(change: ChangePoint) -> tuple[str, ...]:
    """One change point under `CHANGE_HEADINGS`."""
    return (
        change.created,
        (change.commit or "-")[:12],
        (change.last_commit or "-")[:12],
        f"{change.before_ms:.3f}",
        f"{change.after_ms:.3f}",
        f"{change.ratio - 1:+.1%}",
    )


def _indented(series: SeriesChanges) -> list[str]:
    rows = [change_row(change) for change in series.changes]
    table = columns(CHANGE_HEADINGS, rows) if rows else []
    noise = f"noise of one measurement {series.noise:.1%}"
    return [f"  {line}" for line in (*table, f"{series.verdict}: {series.reason}; {noise}")]


def _plot(series: SeriesChanges) -> tuple[str, str]:
    ends = [0, *series.levels, len(series.medians_ms)]
    levels = [series.medians_ms[start:end] for start, end in pairwise(ends)]
    caption = f"Medians of {len(series.medians_ms)} measurements, oldest first; levels in turns of two colours"
    return caption, dots_plot(levels, across="measurement", up="ms")
