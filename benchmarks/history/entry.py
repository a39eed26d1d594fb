"""One measurement of one batch size, as a line of a history."""

from __future__ import annotations

import os
import re
from typing import Literal, NamedTuple

import gpusq_deploy
from gpusq_deploy.artifacts import Runs, Value
from gpusq_deploy.benchmarks.machine.asking import ask
from gpusq_deploy.benchmarks.summary import summarise

# Which commit a job builds, as GitHub Actions and GitLab say it.
_COMMIT_VARIABLES = ("GITHUB_SHA", "CI_COMMIT_SHA")
_GIT = ("git", "rev-parse", "HEAD")


class HistoryKey(NamedTuple):
    """What must be the same for two latencies to belong to one series: the model, what runs it, and the machine."""

    model: str
    runtime: str
    device: str
    machine: str
    how: str
    batch: int

    @property
    def text(self) -> str:
        """In one line."""
        how = f", {self.how}" if self.how else ""
        return f"{self.model}, batch {self.batch}, {self.runtime} on {self.device} ({self.machine}{how})"


class HistoryEntry(Value):
    """Milliseconds of one batch size at one time. A tail is None where too few samples have one.

    `variation` is the coefficient of variation of all samples; `commit` None outside a repository.
    """

    schema: Literal["gpusq.history/1"] = "gpusq.history/1"
    created: str
    commit: str | None
    model: str
    model_digest: str
    runtime: str
    runtime_version: str
    device: str
    threads: int | None
    cuda_graph: bool
    isolation: str
    cpu: str
    cores: int
    cpu_quota: float | None
    gpu: str | None
    gpu_driver: str | None
    os: str
    python: str
    gpusq_deploy: str
    batch: int
    samples: int
    median_ms: float
    p90_ms: float | None
    p99_ms: float | None
    variation: float

    @property
    def key(self) -> HistoryKey:
        """The series that it belongs to. Versions may change within one: they may be what changed its level."""
        quota = "" if self.cpu_quota is None else f", {self.cpu_quota:g} cores' time"
        machine = f"{self.gpu or self.cpu}, {self.cores} cores{quota}"
        threads = "" if self.threads is None else f"{self.threads} threads"
        ways = (
            threads,
            "CUDA graph" if self.cuda_graph else "",
            "in one process" if self.isolation == "session" else "",
        )
        return HistoryKey(self.model, self.runtime, self.device, machine, ", ".join(filter(None, ways)), self.batch)


def entries_of(runs: Runs, commit: str | None) -> tuple[HistoryEntry, ...]:
    """A line for each batch size."""
    environment, runtime = runs.environment, runs.runtime
    return tuple(
        HistoryEntry(
            created=runs.created,
            commit=commit,
            model=runs.model,
            model_digest=runs.model_digest,
            runtime=runtime.name,
            runtime_version=runtime.version,
            device=runtime.device,
            threads=runtime.threads,
            cuda_graph=runtime.cuda_graph,
            isolation=runs.settings.isolation,
            cpu=environment.cpu,
            cores=environment.cores,
            cpu_quota=environment.cpu_quota,
            gpu=environment.gpu,
            gpu_driver=environment.gpu_driver,
            os=environment.os,
            python=environment.python,
            gpusq_deploy=gpusq_deploy.__version__,
            batch=summary.batch,
            samples=summary.samples,
            median_ms=summary.median_ms,
            p90_ms=summary.p90_ms,
            p99_ms=summary.p99_ms,
            variation=summary.variation,
        )
        for summary in summarise(runs)
    )


def current_commit() -> str | None:
    """The commit that a CI job builds, else that of the repository around the current folder; None: neither."""
    for name in _COMMIT_VARIABLES:
        if commit := os.environ.get(name):
            return commit
    return (ask(_GIT) or "").strip() or None


def file_name(runs: Runs) -> str:
    """What a history of these runs is called in a folder of several: by model, runtime and machine."""
    parts = (runs.model, runs.runtime.name, runs.environment.gpu or runs.environment.cpu)
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-.") + ".jsonl"
