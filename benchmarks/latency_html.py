"""Runs as parts of a page: what was measured, how it is distributed, and each process of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from gpusq_deploy.artifacts import Runs, Series
from gpusq_deploy.benchmarks.machine.steadiness import unsteadiness
from gpusq_deploy.benchmarks.report import machine_text, runtime_text, taken_text
from gpusq_deploy.benchmarks.summary import BatchSummary, samples_of, summarise
from gpusq_deploy.bundle import Bundle, LatencyPart, LatencyRow, dots_plot

# More dots than this take longer to load than they tell.
_MOST_DOTS = 3000


def latency_parts(measured: Sequence[Runs], bundle: Bundle | None = None) -> tuple[LatencyPart, ...]:
    """One part for each file of runs.

    Args:
        measured: In the order to show them.
        bundle: What they are shown with; runs of a file that isn't in it say that they are of another build.
    """
    engines = {} if bundle is None else {engine.engine_digest: engine.target for engine in bundle.receipt.engines}
    model = "" if bundle is None else bundle.receipt.model_digest
    return tuple(_part(runs, engines, model) for runs in measured)


def _part(runs: Runs, engines: Mapping[str, str], model: str) -> LatencyPart:
    summaries = summarise(runs)
    medians = "; ".join(f"{summary.median_ms:.3f} ms at batch {summary.batch}" for summary in summaries)
    what = {**{digest: f"engine {target}, " for digest, target in engines.items()}, model: "model.onnx, "}
    other = "" if not model or runs.model_digest in {*engines, model} else ", of another build"
    return LatencyPart(
        title=f"{what.get(runs.model_digest, '')}{medians}, {runs.runtime.name} on {runs.runtime.device}{other}",
        of_engine=runs.model_digest in engines or runs.builds is not None,
        facts=(
            ("model", f"{runs.model} {runs.model_digest}"),
            ("runtime", runtime_text(runs.runtime)),
            ("machine", machine_text(runs.environment)),
            ("taken", f"{taken_text(runs.settings)}, {runs.created}"),
        ),
        plots=tuple(_plot(runs, summary) for summary in summaries),
        rows=tuple(_row(series, series.rebuild * runs.settings.repeats + series.repeat) for series in runs.series),
        remarks=tuple(_remarks(runs, summaries)),
    )


def _plot(runs: Runs, summary: BatchSummary) -> tuple[str, str]:
    samples = samples_of(runs, summary.batch)
    step = -(-samples.size // _MOST_DOTS)
    drawn = [process[::step].tolist() for process in samples.reshape(-1, samples.shape[-1])]
    left = "" if step == 1 else f"; one of {step} is drawn"
    caption = (
        f"Batch {summary.batch}: every inference in the order of measurement, the processes in turns of two colours; "
        f"median {summary.median_ms:.3f} ms, variation {summary.variation:.1%}{left}"
    )
    return caption, dots_plot(drawn, across="inference", up="ms")


def _row(series: Series, number: int) -> LatencyRow:
    return LatencyRow(
        batch=series.batch,
        process=number,
        samples=len(series.samples_ms),
        lowest=f"{min(series.samples_ms):.3f}",
        median=f"{statistics.median(series.samples_ms):.3f}",
        highest=f"{max(series.samples_ms):.3f}",
    )


def _remarks(runs: Runs, summaries: Sequence[BatchSummary]) -> Iterator[str]:
    yield from (f"batch {summary.batch}: {remark}" for summary in summaries for remark in summary.remarks)
    yield from unsteadiness(runs)
    yield from runs.notes
