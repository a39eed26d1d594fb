"""How long inferences take, with every sample kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike
from gpusq_deploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import Runs
    from gpusq_deploy.benchmarks import GateResult, Gates, Load, MachineNoise, MeasuredModel


# The time of every query is kept.
_MOST_QUERIES = 1_000_000


def bench(  # noqa: PLR0913 - one argument for each option of gpusq-bench
    path: PathLike,
    *,
    runtime: str = "auto",
    batches: Sequence[int] | None = None,
    reference: PathLike | None = None,
    cuda_graph: bool = False,
    threads: int | None = None,
    repeats: int = 5,
    iterations: int = 100,
    warmup: int = 10,
    in_process: bool = False,
    rebuilds: int | None = None,
    energy: float | None = None,
    reporter: Reporter | None = None,
) -> Runs:
    """Measure the latency of a bundle, an engine or an ONNX model, as gpusq-bench does.

    Args:
        path: A bundle's folder, a `.plan` or `.engine`, or an `.onnx` file.
        runtime: `"tensorrt"`, `"tensorrt-rtx"`, `"onnxruntime"`, or `"auto"`: the fastest that can run it here.
        batches: Batch sizes; None: the bundle's minimum and optimum, or 1.
        reference: An ONNX model to compare the outputs of a plan outside a bundle with, on the CPU.
        cuda_graph: Launch each inference of an engine as one captured CUDA graph.
        threads: Of onnxruntime; None: its own choice.
        repeats: Fresh processes, each with a session.
        iterations: Timed inferences per process.
        warmup: Inferences before timing.
        in_process: Open fresh sessions in this process instead, as for a profiler.
        rebuilds: Build the bundle's engine so often anew, at least twice, and measure all of those in its place.
        energy: Seconds for which each process runs every batch size again, untimed, to tell its energy.
        reporter: Who hears how it goes; nobody.

    Raises:
        GpusqError: It can't be run here, or not so.
    """
    from gpusq_deploy.artifacts import MeasureSettings
    from gpusq_deploy.benchmarks import find_source, rebuilt, record
    from gpusq_deploy.compile import RequestError

    heard = reporter or SILENT
    subject = _subject_of(path, runtime, reference, heard)
    settings = MeasureSettings(
        warmup=warmup,
        iterations=iterations,
        repeats=repeats,
        isolation="session" if in_process else "process",
        energy_seconds=energy,
    )
    if energy is not None:
        if in_process:
            raise RequestError("--energy asks processes: leave out --in-process")
        find_source()  # before anything is built
    chosen = subject.default_batches if batches is None else tuple(batches)
    if rebuilds is not None and (in_process or rebuilds < 2):
        raise RequestError("--rebuilds takes two builds at least, each in processes of its own")
    with nullcontext(subject) if rebuilds is None else rebuilt(subject, rebuilds, heard) as measured:
        return record(measured, chosen, settings, threads=threads, cuda_graph=cuda_graph, progress=heard.progress)


def _subject_of(path: PathLike, runtime: str, reference: PathLike | None, heard: Reporter) -> MeasuredModel:
    from gpusq_deploy.artifacts import require_input
    from gpusq_deploy.benchmarks import find_subject
    from gpusq_deploy.compile import RequestError

    for place in (path, *([] if reference is None else [reference])):
        require_input(Path(place))
    subject = find_subject(Path(path), runtime)
    if reference is not None:
        if subject.choice.name == "onnxruntime":
            raise RequestError("--reference is for an engine: ONNX Runtime is the reference itself")
        subject = subject._replace(reference=Path(reference))
    heard.say(f"runtime: {subject.choice.name} ({subject.choice.reason})")
    return subject


def measure_load(  # noqa: PLR0913 - one argument for each option of gpusq-bench under load
    path: PathLike,
    *,
    rate: float | None = None,
    latency_limit: float | None = None,
    streams: int = 1,
    duration: float = 10.0,
    batch: int | None = None,
    runtime: str = "auto",
    cuda_graph: bool = False,
    threads: int | None = None,
    warmup: int = 10,
    reporter: Reporter | None = None,
) -> Load:
    """Measure throughput, or latency while queries arrive at random, as gpusq-bench --offline and --rate do.

    Args:
        path: A bundle's folder, a `.plan` or `.engine`, or an `.onnx` file.
        rate: Queries per second that arrive on average; None: as many as can be done.
        latency_limit: Instead of a rate: search the highest whose p99 latency keeps to so many milliseconds.
        streams: How many queries run at the same time.
        duration: Seconds of a trial.
        batch: Samples of a query; None: the bundle's optimum, or 1.
        runtime: See `bench`.
        cuda_graph: See `bench`.
        threads: See `bench`; streams share them.
        warmup: Inferences of each stream before.
        reporter: Who hears how it goes; nobody.

    Raises:
        GpusqError: It can't be run here, or not so.
        ValueError: A rate, a time or a count that makes no sense.
    """
    from gpusq_deploy.benchmarks import TrialRequest, record_load
    from gpusq_deploy.compile import RequestError

    if rate is not None and rate * duration > _MOST_QUERIES:
        raise RequestError(
            f"{rate:g} queries/s over {duration:g} s are {rate * duration:.3g}; {_MOST_QUERIES} are kept at most"
        )
    if rate is not None and latency_limit is not None:
        raise RequestError("--latency-limit searches the rate: leave out --rate")
    heard = reporter or SILENT
    subject = _subject_of(path, runtime, None, heard)
    request = TrialRequest(
        batch=subject.default_batches[-1] if batch is None else batch,
        streams=streams,
        seconds=duration,
        rate=rate,
        warmup=warmup,
    )
    return record_load(
        subject,
        request,
        latency_limit_ms=latency_limit,
        threads=threads,
        cuda_graph=cuda_graph,
        progress=heard.progress,
    )


def interleave(  # noqa: PLR0913 - one argument for each option of gpusq-bench --interleave
    base: PathLike,
    head: PathLike,
    *,
    runtime: str = "auto",
    batches: Sequence[int] | None = None,
    cuda_graph: bool = False,
    threads: int | None = None,
    max_regression: float = 0.03,
    max_seconds: float = 300.0,
    iterations: int = 90,
    warmup: int = 10,
    reporter: Reporter | None = None,
) -> GateResult:
    """Is `head` slower than `base` by more than the budget? Both in turns, until that is decided.

    Args:
        base: What holds today: a bundle's folder, an engine, or an ONNX model.
        head: What would replace it.
        runtime: See `bench`; the same for both.
        batches: Batch sizes; None: base's own, or 1.
        cuda_graph: Launch each inference of an engine as one captured CUDA graph.
        threads: Of onnxruntime; None: its own choice.
        max_regression: The budget as a share: 0.03 allows 3 % more latency.
        max_seconds: When to stop undecided; no pair is started that wouldn't end by then.
        iterations: The most timed inferences of one process and batch size, at least 6; fewer of a slow model.
        warmup: Inferences before timing, of each process and batch size.
        reporter: Who hears how it goes; nobody.

    Returns:
        The verdict with its bounds, and every sample; `exit_code` is gpusq-bench's.

    Raises:
        GpusqError: One can't be run here, or they run on two runtimes.
        ValueError: A budget, a time or a count that makes no sense.
    """
    gates = interleave_models(
        [(base, head)],
        runtime=runtime,
        batches=batches,
        cuda_graph=cuda_graph,
        threads=threads,
        max_regression=max_regression,
        max_seconds=max_seconds,
        iterations=iterations,
        warmup=warmup,
        reporter=reporter,
    )
    return gates.gates[0]


def interleave_models(  # noqa: PLR0913 - one argument for each option of gpusq-bench --interleave
    models: Sequence[tuple[PathLike, PathLike]],
    *,
    runtime: str = "auto",
    batches: Sequence[int] | None = None,
    cuda_graph: bool = False,
    threads: int | None = None,
    max_regression: float = 0.03,
    max_seconds: float = 300.0,
    iterations: int = 90,
    warmup: int = 10,
    reporter: Reporter | None = None,
) -> Gates:
    """`interleave` of several models: a pair of each in turns, until each is decided or the time of all is up.

    All batch sizes of all models share the rates of wrong verdicts: those of the whole stay what they are of one.

    Args:
        models: Base and head of each.
        runtime: See `interleave`.
        batches: Batch sizes of each model; None: its base's own, or 1.
        cuda_graph: See `interleave`.
        threads: See `interleave`.
        max_regression: See `interleave`.
        max_seconds: When to stop undecided, all models together.
        iterations: See `interleave`.
        warmup: See `interleave`.
        reporter: Who hears how it goes; nobody.

    Returns:
        The worst verdict, and each model's result.

    Raises:
        GpusqError: One can't be run here, or base and head run on two runtimes.
        ValueError: No models, or a budget, a time or a count that makes no sense.
    """
    from gpusq_deploy.artifacts import require_input
    from gpusq_deploy.benchmarks import GateSettings, find_subject, interleave_models as take, sided

    settings = GateSettings(
        max_regression=max_regression, max_seconds=max_seconds, max_iterations=iterations, warmup=warmup
    )
    for path in (path for both in models for path in both):
        require_input(Path(path))
    subjects = [(find_subject(Path(base), runtime), find_subject(Path(head), runtime)) for base, head in models]
    heard = reporter or SILENT
    for choice in dict.fromkeys(base.choice for base, _ in subjects):
        heard.say(f"runtime: {choice.name} ({choice.reason})")
    sides = [
        sided(
            base,
            head,
            base.default_batches if batches is None else tuple(batches),
            threads=threads,
            cuda_graph=cuda_graph,
        )
        for base, head in subjects
    ]
    return take(sides, settings, heard.progress)


def calibrate_noise(  # noqa: PLR0913 - one argument for each option of gpusq-bench --calibrate-noise
    path: PathLike,
    *,
    runtime: str = "auto",
    batches: Sequence[int] | None = None,
    cuda_graph: bool = False,
    threads: int | None = None,
    iterations: int = 90,
    warmup: int = 10,
    reporter: Reporter | None = None,
) -> MachineNoise:
    """Which effects can this machine see? A model against itself, in 20 pairs of processes.

    Args:
        path: A bundle's folder, an engine, or an ONNX model.
        runtime: See `bench`.
        batches: Batch sizes; None: the bundle's own, or 1.
        cuda_graph: See `interleave`.
        threads: Of onnxruntime; None: its own choice.
        iterations: See `interleave`.
        warmup: See `interleave`.
        reporter: Who hears how it goes; nobody.

    Raises:
        GpusqError: It can't be run here.
        ValueError: A count that makes no sense.
    """
    from gpusq_deploy.artifacts import require_input
    from gpusq_deploy.benchmarks import (
        CALIBRATION_PAIRS,
        GateSettings,
        find_subject,
        interleave as take,
        noise_of,
        sided,
    )

    settings = GateSettings(max_iterations=iterations, warmup=warmup, fixed_pairs=CALIBRATION_PAIRS)
    require_input(Path(path))
    subject = find_subject(Path(path), runtime)
    heard = reporter or SILENT
    chosen = subject.default_batches if batches is None else tuple(batches)
    sides = sided(subject, subject, chosen, threads=threads, cuda_graph=cuda_graph)
    return noise_of(take(sides, settings, heard.progress))
