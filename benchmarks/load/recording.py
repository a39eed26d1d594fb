"""Measure a subject under load, and put down everything that belongs to the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from gpusq_deploy.artifacts import ProcessStates, digest_of_file
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.load.searching import STEPS, capacity_of, search_rate, seconds_for
from gpusq_deploy.benchmarks.load.values import Load, LoadTrial, TrialRequest
from gpusq_deploy.benchmarks.load.worker import MODULE
from gpusq_deploy.benchmarks.machine.reading import read_state
from gpusq_deploy.benchmarks.measure import Progress
from gpusq_deploy.benchmarks.recording import now, outputs_compared, require_threads
from gpusq_deploy.benchmarks.subject import MeasuredModel
from gpusq_deploy.benchmarks.worker_process import WorkerProcess, request_for

_NOTES = (
    "a query is one inference of one batch; its latency counts from when it was due, not from when it was begun",
    "copies between host and GPU are not part of a query",
    "streams are threads of one Python process, which does its own part of each query for one stream at a time",
)


def record_load(
    subject: MeasuredModel,
    request: TrialRequest,
    *,
    latency_limit_ms: float | None = None,
    threads: int | None = None,
    cuda_graph: bool = False,
    progress: Progress | None = None,
) -> Load:
    """Measure in a fresh process.

    Args:
        subject: The model file and its runtime.
        request: The trial; with a limit the rate is searched, and `request` has none.
        latency_limit_ms: What the p99 must keep to.
        threads: For onnxruntime alone; None leaves the choice to it.
        cuda_graph: For engines alone: launch each inference as one captured CUDA graph.
        progress: Told before each trial and at the end.

    Raises:
        GpusqError: The model can't be run so.
    """
    require_threads(subject, threads)
    digest = digest_of_file(subject.path)
    asked = request_for(subject, (request.batch,), seed=request.seed, threads=threads, cuda_graph=cuda_graph)
    compared = outputs_compared(subject, asked)
    with WorkerProcess(asked, MODULE) as worker:
        info = worker.opened()
        before = read_state()
        take = _counted(worker.load, progress, 1 if latency_limit_ms is None else STEPS + 1)
        trials = [take(request)] if latency_limit_ms is None else _searched(take, request, latency_limit_ms)
        states = (ProcessStates(repeat=0, before=before, after=read_state()),)
    return Load(
        created=now(),
        model=subject.name,
        model_digest=digest,
        runtime=info,
        environment=read_environment(),
        scenario="offline" if request.rate is None and latency_limit_ms is None else "server",
        latency_limit_ms=latency_limit_ms,
        outputs=compared.outputs,
        notes=(*_NOTES, *compared.notes),
        states=states,
        trials=tuple(trials),
    )


def _searched(take: Callable[[TrialRequest], LoadTrial], request: TrialRequest, limit_ms: float) -> Sequence[LoadTrial]:
    offline = take(request)

    def at(rate: float) -> LoadTrial:
        seconds = seconds_for(rate, request.seconds)
        return take(msgspec.structs.replace(request, rate=rate, seconds=seconds))

    return [offline, *search_rate(at, capacity_of(offline), limit_ms).trials]


def _counted(
    take: Callable[[TrialRequest], LoadTrial], progress: Progress | None, total: int
) -> Callable[[TrialRequest], LoadTrial]:
    done = 0

    def counting(request: TrialRequest) -> LoadTrial:
        nonlocal done
        trial = take(request)
        done += 1
        if progress is not None:
            progress("measuring under load", done, total)
        return trial

    return counting
