"""Measure a subject and put down everything that belongs to the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import datetime, timezone
from typing import Literal, NamedTuple

import msgspec

from gpusq_deploy.artifacts import (
    EnergySample,
    EngineBuilds,
    MeasureSettings,
    ProcessStates,
    Runs,
    RuntimeInfo,
    Series,
    digest_of_file,
)
from gpusq_deploy.benchmarks.energy import EnergyRequest, take_energy
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.machine.power import find_source
from gpusq_deploy.benchmarks.machine.reading import read_state
from gpusq_deploy.benchmarks.measure import Progress, batch_order, check_batches, measure, normal_feeds
from gpusq_deploy.benchmarks.reference import CpuReference
from gpusq_deploy.benchmarks.subject import MeasuredModel
from gpusq_deploy.benchmarks.worker import WorkerRequest, open_requested, session_info
from gpusq_deploy.benchmarks.worker_process import WorkerProcess, request_for
from gpusq_deploy.engines import Session
from gpusq_deploy.errors import GpusqError


def record(
    subject: MeasuredModel,
    batches: Sequence[int],
    settings: MeasureSettings,
    *,
    threads: int | None = None,
    cuda_graph: bool = False,
    progress: Progress | None = None,
) -> Runs:
    """Measure with made-up inputs.

    Args:
        subject: The model file and its runtime; or several builds, each measured by all repeats.
        batches: Batch sizes, in the order to measure them.
        settings: Counts and the seed of the inputs.
        threads: For onnxruntime alone; None leaves the choice to it.
        cuda_graph: For engines alone: launch each inference as one captured CUDA graph.
        progress: See `measure`.

    Raises:
        GpusqError: See `measure`; or `threads` was given to another runtime, or nobody tells the power.
    """
    require_threads(subject, threads)
    seconds = settings.energy_seconds
    energy = None if seconds is None else EnergyRequest(seconds, find_source())
    # Digested before the clock starts: it also brings the file into the page cache for every repeat alike.
    digest = digest_of_file(subject.path if subject.rebuilt is None else subject.rebuilt.model)
    asked = request_for(subject, tuple(batches), seed=settings.seed, threads=threads, cuda_graph=cuda_graph)
    requests = _of_each_build(subject, asked)
    compared = [outputs_compared(subject, request) for request in requests]
    heard = progress or _silence
    if settings.isolation == "process":
        taken = _in_processes(requests, settings, heard, energy)
    else:
        taken = _in_this_process(subject, asked, settings, heard)
    builds = None if subject.rebuilt is None else subject.rebuilt.builds
    return Runs(
        created=now(),
        model=subject.name,
        model_digest=digest,
        runtime=taken.info,
        environment=read_environment(),
        settings=settings,
        outputs=compared[0].outputs,
        builds=builds,
        notes=(*notes_on(settings, builds), *dict.fromkeys(note for entry in compared for note in entry.notes)),
        states=taken.states,
        energy=taken.energy,
        series=taken.series,
    )


def require_threads(subject: MeasuredModel, threads: int | None) -> None:
    """Refuse a number of threads for a runtime that has none to choose.

    Raises:
        GpusqError: That is so.
    """
    if threads is not None and subject.choice.name != "onnxruntime":
        raise GpusqError(
            f"{subject.choice.name} has no number of threads to choose",
            place="--threads",
            hint="leave it out, or use --runtime onnxruntime",
        )


def _of_each_build(subject: MeasuredModel, asked: WorkerRequest) -> list[WorkerRequest]:
    if subject.rebuilt is None:
        return [asked]
    return [msgspec.structs.replace(asked, path=str(path)) for path in subject.rebuilt.paths]


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class _Taken(NamedTuple):
    info: RuntimeInfo
    series: tuple[Series, ...]
    states: tuple[ProcessStates, ...]
    energy: tuple[EnergySample, ...] = ()


def _in_processes(
    requests: Sequence[WorkerRequest],
    settings: MeasureSettings,
    progress: Progress,
    energy: EnergyRequest | None = None,
) -> _Taken:
    """Each repeat of each build in a fresh process: one repeat of all builds, then the next, backwards.

    So a machine that slowly warms up burdens all builds alike.
    """
    total = settings.repeats * len(requests) * len(requests[0].batches)
    infos: list[RuntimeInfo] = []
    taken: list[Series] = []
    states: list[ProcessStates] = []
    spent: list[EnergySample] = []
    for repeat in range(settings.repeats):
        for rebuild in batch_order(range(len(requests)), repeat):
            with WorkerProcess(requests[rebuild]) as worker:
                infos.append(worker.opened())
                before = read_state()
                for batch in batch_order(requests[rebuild].batches, repeat):
                    progress("measuring", len(taken), total)
                    samples = worker.take(batch, settings.iterations, warmup=settings.warmup)
                    taken.append(
                        Series(batch=batch, rebuild=rebuild, repeat=repeat, warmup=settings.warmup, samples_ms=samples)
                    )
                states.append(ProcessStates(rebuild=rebuild, repeat=repeat, before=before, after=read_state()))
                if energy is not None:
                    spent += [
                        take_energy(worker, series, energy) for series in taken[-len(requests[rebuild].batches) :]
                    ]
    progress("measuring", total, total)
    return _Taken(infos[0], tuple(taken), tuple(states), tuple(spent))


def _in_this_process(
    subject: MeasuredModel, request: WorkerRequest, settings: MeasureSettings, progress: Progress
) -> _Taken:
    infos: list[RuntimeInfo] = []

    def open_fresh() -> Session:
        session = open_requested(request)
        infos.append(session_info(session, request))
        return session

    before = read_state()
    series = measure(open_fresh, request.batches, settings, progress, allowed=subject.batch)
    return _Taken(infos[0], series, (ProcessStates(repeat=0, before=before, after=read_state()),))


class Compared(NamedTuple):
    """Whether an engine's outputs were compared with the CPU's, and what is noted of it."""

    outputs: Literal["reference", "compared", "not compared"]
    notes: tuple[str, ...] = ()


def outputs_compared(subject: MeasuredModel, request: WorkerRequest) -> Compared:
    """What an engine's outputs were compared with, or why they weren't; nothing for ONNX Runtime, the reference itself.

    Raises:
        GpusqError: They are wrong, or the engine can't take a batch size.
    """
    if subject.choice.name == "onnxruntime":
        return Compared("reference")
    if subject.reference is None:
        why = "the engine's model isn't known; --reference MODEL.onnx names it"
        return Compared("not compared", (f"outputs not compared with the CPU: {why}",))
    try:
        reference = CpuReference(subject.reference)
    except GpusqError as error:
        return Compared("not compared", (f"outputs not compared with the CPU: {error.what}",))
    with closing(reference), closing(open_requested(request)) as session:
        check_batches(session.inputs, request.batches, subject.batch)
        for batch in request.batches:
            feeds = normal_feeds(session.inputs, batch, request.seed)
            reference.check(feeds, session.run(feeds), batch)
    return Compared("compared", (reference.note(),))


def notes_on(settings: MeasureSettings, builds: EngineBuilds | None = None) -> tuple[str, ...]:
    """What everybody should know of the numbers."""
    where = {
        "session": "fresh sessions within one process",
        "process": "fresh processes",
        "pair": "fresh processes, each beside one of the other model and in turns with it",
    }
    return (
        f"inputs are standard-normal, made up from seed {settings.seed}: latencies of data-dependent models may differ",
        "copies between host and GPU are not part of a sample",
        f"repeats are {where[settings.isolation]}, of {'one build' if builds is None else 'each build'} of the engine",
    )


def _silence(_label: str, _done: int, _total: int) -> None:
    """Nobody asked for progress."""
