"""What was measured under load, as text: plain ASCII columns."""

from __future__ import annotations

from collections.abc import Iterator

from gpusq_deploy.benchmarks.load.judging import TrialSummary, judge, summarise_trial
from gpusq_deploy.benchmarks.load.values import Load, LoadTrial
from gpusq_deploy.benchmarks.machine.steadiness import machine_warnings
from gpusq_deploy.benchmarks.report import columns, machine_text, runtime_text
from gpusq_deploy.text import counted

_OFFLINE = ("queries", "samples/s", "busy", "service ms")
_SERVER = ("rate/s", "queries", "given up", "samples/s", "busy", "service ms", "median ms", "p90 ms", "p99 ms", "limit")


def text_from_load(load: Load) -> str:
    """What was measured on what, one row per trial, the highest rate where it was searched; without a last newline."""
    request = load.trials[0].request
    taken = f"{counted(request.streams, 'stream')} x batch {request.batch}, after {request.warmup} warm-ups each"
    lines = [
        f"model    {load.model}  {load.model_digest}",
        f"runtime  {runtime_text(load.runtime)}",
        f"machine  {machine_text(load.environment)}",
        f"taken    {load.scenario}, {taken}",
        "",
    ]
    summaries = [(trial, summarise_trial(trial)) for trial in load.trials]
    offline = [pair for pair in summaries if pair[0].request.rate is None]
    server = sorted((pair for pair in summaries if pair[0].request.rate is not None), key=lambda pair: _rate(pair[0]))
    if offline:
        lines += columns(_OFFLINE, [_offline_row(summary) for _, summary in offline])
    if server:
        lines += [*([""] if offline else []), *columns(_SERVER, [_server_row(load, *pair) for pair in server])]
    found = [*highest(load)]
    remarks = dict.fromkeys(remark for _, summary in summaries for remark in summary.remarks)
    for block in (found, [*remarks], [*machine_warnings(load.environment, load.states)], [*load.notes]):
        lines += ["", *block] if block else []
    return "\n".join(lines)


def highest(load: Load) -> Iterator[str]:
    """The answer of a search, in one sentence; nothing where none was made."""
    if load.latency_limit_ms is None:
        return
    limit, batch = load.latency_limit_ms, load.trials[0].request.batch
    server = [trial for trial in load.trials if trial.request.rate is not None]
    met = [_rate(trial) for trial in server if judge(trial, limit) == "met"]
    missed = [_rate(trial) for trial in server if judge(trial, limit) != "met"]
    if not met:
        yield f"no rate that was tried keeps the p99 to {limit:g} ms; the lowest was {min(missed):.4g} queries/s"
        return
    above = f", not at {min(missed):.4g}" if missed else ""
    yield f"the p99 keeps to {limit:g} ms at {max(met):.4g} queries/s ({batch * max(met):.4g} samples/s){above}"


def _rate(trial: LoadTrial) -> float:
    assert trial.request.rate is not None, "of a server"
    return trial.request.rate


def _offline_row(summary: TrialSummary) -> tuple[str, ...]:
    return (
        str(summary.answered),
        f"{summary.samples_per_second:.1f}",
        f"{summary.busy:.0%}",
        f"{summary.service_ms:.3f}",
    )


def _server_row(load: Load, trial: LoadTrial, summary: TrialSummary) -> tuple[str, ...]:
    limit = load.latency_limit_ms
    return (
        f"{_rate(trial):.4g}",
        str(len(trial.due_ms)),
        str(summary.unanswered),
        f"{summary.samples_per_second:.1f}",
        f"{summary.busy:.0%}",
        f"{summary.service_ms:.3f}",
        *("-" if value is None else f"{value:.3f}" for value in (summary.median_ms, summary.p90_ms, summary.p99_ms)),
        "-" if limit is None else judge(trial, limit),
    )
