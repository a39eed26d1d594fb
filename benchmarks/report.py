"""Runs as text for a terminal or a CI log: plain ASCII columns, no colours, no wrapping."""

from __future__ import annotations

from collections.abc import Sequence

from gpusq_deploy.artifacts import EngineBuilds, Environment, MeasureSettings, Runs, RuntimeInfo
from gpusq_deploy.benchmarks.energy import energy_lines
from gpusq_deploy.benchmarks.machine.steadiness import unsteadiness
from gpusq_deploy.benchmarks.statistics import unit_medians
from gpusq_deploy.benchmarks.summary import BatchSummary, samples_of, summarise
from gpusq_deploy.text import counted

_RUN_HEADINGS = ("batch", "samples", "median ms", "p90 ms", "p99 ms", "per second", "cv")
_REPEATS = {"session": "sessions", "process": "processes", "pair": "processes in pairs"}
_LOCKED = {True: "locked", False: "not locked", None: "unknown"}


def text_from_runs(runs: Runs) -> str:
    """What was measured on what, one row per batch size, and every warning; ends without a newline."""
    summaries = summarise(runs)
    lines = [
        f"model    {runs.model}  {runs.model_digest}",
        *([] if runs.builds is None else [f"builds   {builds_text(runs.builds)}"]),
        f"runtime  {runtime_text(runs.runtime)}",
        f"machine  {machine_text(runs.environment)}",
        f"taken    {taken_text(runs.settings)}{'' if runs.builds is None else ', of each build'}",
        "",
        *columns(_RUN_HEADINGS, [_run_row(summary) for summary in summaries]),
    ]
    remarks = [f"batch {summary.batch}: {remark}" for summary in summaries for remark in summary.remarks]
    return "\n".join(
        [
            *lines,
            *block([*_spreads(runs), *energy_lines(runs)]),
            *block(remarks),
            *block(unsteadiness(runs)),
            *block(runs.notes),
        ]
    )


def _spreads(runs: Runs) -> list[str]:
    """How far the builds lie apart, by batch size."""
    if runs.builds is None:
        return []
    same = (
        ["all builds are one engine, bit for bit: this builder times nothing, and more repeats would tell as much"]
        if len({entry.engine_digest for entry in runs.builds.engines}) == 1
        else []
    )
    medians = {batch: unit_medians(samples_of(runs, batch)) for batch in runs.batches}
    return same + [
        f"batch {batch}: medians of the builds are {', '.join(f'{value:.3f}' for value in found)} ms, "
        f"{found.max() / found.min() - 1:.1%} apart"
        for batch, found in medians.items()
    ]


def builds_text(builds: EngineBuilds) -> str:
    """How many builds there are, and how many differ: `3 builds, 2 distinct engines, 1 distinct list of kernels`."""
    engines = {entry.engine_digest for entry in builds.engines}
    lists = {entry.layers_digest for entry in builds.engines}
    kernels = "1 distinct list of kernels" if len(lists) == 1 else f"{len(lists)} distinct lists of kernels"
    return f"{counted(len(builds.engines), 'build')}, {counted(len(engines), 'distinct engine')}, {kernels}"


def runtime_text(runtime: RuntimeInfo) -> str:
    """What ran the model, on what, and why that."""
    return (
        f"{runtime.name} {runtime.version} on {runtime.device} ({runtime.reason})"
        + (f", through {runtime.cuda_api}" if runtime.cuda_api else "")
        + (", by CUDA graph" if runtime.cuda_graph else "")
    )


def taken_text(settings: MeasureSettings) -> str:
    """How many samples were taken, and how."""
    return (
        f"{settings.repeats} {_REPEATS[settings.isolation]} x {settings.iterations} inferences "
        f"after {settings.warmup} warm-ups"
    )


def machine_text(environment: Environment) -> str:
    """The machine, as far as it changes a latency."""
    parts = [f"{environment.cpu}, {environment.cores} cores"]
    if environment.cpu_quota is not None:
        parts.append(f"limited to {environment.cpu_quota:g} cores' time")
    if environment.gpu is None:
        parts.append("no GPU")
    else:
        parts.append(f"{environment.gpu}, driver {environment.gpu_driver or 'unknown'}")
    if environment.power_mode is not None:
        parts.append(f"power mode {environment.power_mode}")
    if environment.gpu_clocks_locked is not None:
        parts.append(f"GPU clocks {_LOCKED[environment.gpu_clocks_locked]}")
    return ", ".join([*parts, f"CPU clocks {_LOCKED[environment.clocks_locked]}", environment.os])


def _run_row(summary: BatchSummary) -> tuple[str, ...]:
    return (
        str(summary.batch),
        str(summary.samples),
        f"{summary.median_ms:.3f}",
        _milliseconds(summary.p90_ms),
        _milliseconds(summary.p99_ms),
        f"{summary.throughput:.1f}",
        f"{summary.variation:.1%}",
    )


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells flush right under their headings, a line each."""
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (headings, *rows)]


def block(lines: Sequence[str]) -> list[str]:
    """Lines after an empty one; nothing of none."""
    return ["", *lines] if lines else []
