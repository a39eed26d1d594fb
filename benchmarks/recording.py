"""Measure a subject and put down everything that belongs to the numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime, timezone
from typing import Literal, NamedTuple

import msgspec

from gpusq_deploy.artifacts import MeasureSettings, Runs, RuntimeInfo, digest_of_file
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.measure import Progress, check_batches, measure, normal_feeds
from gpusq_deploy.benchmarks.reference import CpuReference
from gpusq_deploy.benchmarks.subject import MeasuredModel
from gpusq_deploy.engines import Session, open_session
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
        subject: The model file and its runtime.
        batches: Batch sizes, in the order to measure them.
        settings: Counts and the seed of the inputs.
        threads: For onnxruntime alone; None leaves the choice to it.
        cuda_graph: For engines alone: launch each inference as one captured CUDA graph.
        progress: See `measure`.

    Raises:
        GpusqError: See `measure`; or `threads` was given to another runtime.
    """
    if threads is not None and subject.choice.name != "onnxruntime":
        raise GpusqError(
            f"{subject.choice.name} has no number of threads to choose",
            place="--threads",
            hint="leave it out, or use --runtime onnxruntime",
        )
    # Digested before the clock starts: it also brings the file into the page cache for every repeat alike.
    digest = digest_of_file(subject.path)
    infos: list[RuntimeInfo] = []

    def open_fresh() -> Session:
        session = _open(subject, threads, cuda_graph=cuda_graph)
        info = _info(session, subject.choice.reason, threads)
        infos.append(msgspec.structs.replace(info, cuda_graph=cuda_graph))
        return session

    compared = _compared(subject, batches, settings, functools.partial(_open, subject, threads, cuda_graph=cuda_graph))
    series = measure(open_fresh, batches, settings, progress, allowed=subject.batch)
    return Runs(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        model=subject.name,
        model_digest=digest,
        runtime=infos[0],
        environment=read_environment(),
        settings=settings,
        outputs=compared.outputs,
        notes=(*_notes(settings), *compared.notes),
        series=series,
    )


class _Compared(NamedTuple):
    outputs: Literal["reference", "compared", "not compared"]
    notes: tuple[str, ...] = ()


def _compared(
    subject: MeasuredModel, batches: Sequence[int], settings: MeasureSettings, open_engine: Callable[[], Session]
) -> _Compared:
    """What an engine's outputs were compared with, or why they weren't; nothing for ONNX Runtime, the reference itself.

    Raises:
        GpusqError: They are wrong, or the engine can't take a batch size.
    """
    if subject.choice.name == "onnxruntime":
        return _Compared("reference")
    if subject.reference is None:
        why = "the engine's model isn't known; --reference MODEL.onnx names it"
        return _Compared("not compared", (f"outputs not compared with the CPU: {why}",))
    try:
        reference = CpuReference(subject.reference)
    except GpusqError as error:
        return _Compared("not compared", (f"outputs not compared with the CPU: {error.what}",))
    with closing(reference), closing(open_engine()) as session:
        check_batches(session.inputs, batches, subject.batch)
        for batch in batches:
            feeds = normal_feeds(session.inputs, batch, settings.seed)
            reference.check(feeds, session.run(feeds), batch)
    return _Compared("compared", (reference.note(),))


def _open(subject: MeasuredModel, threads: int | None, *, cuda_graph: bool) -> Session:
    if threads is None or cuda_graph:
        return open_session(
            subject.path,
            subject.choice.name,
            weights=subject.weights,
            cuda_graph=cuda_graph,
            host_code=subject.host_code,
        )
    from gpusq_deploy.engines import open_onnx

    return open_onnx(subject.path, threads=threads)


def _info(session: Session, reason: str, threads: int | None) -> RuntimeInfo:
    return RuntimeInfo(
        name=session.runtime,
        version=session.runtime_version,
        device=session.device,
        threads=threads,
        reason=reason,
        cuda_api=getattr(session, "cuda_api", None),
    )


def _notes(settings: MeasureSettings) -> tuple[str, ...]:
    return (
        f"inputs are standard-normal, made up from seed {settings.seed}: latencies of data-dependent models may differ",
        "copies between host and GPU are not part of a sample",
        "repeats are fresh sessions within one process, of one build of the engine",
    )
