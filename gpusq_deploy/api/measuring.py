"""How long inferences take, with every sample kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpusq_deploy.api.arguments import PathLike
from gpusq_deploy.progress import SILENT, Reporter

if TYPE_CHECKING:
    from gpusq_deploy.artifacts import Runs


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
        repeats: Fresh sessions.
        iterations: Timed inferences per session.
        warmup: Inferences before timing.
        reporter: Who hears how it goes; nobody.

    Raises:
        GpusqError: It can't be run here, or not so.
    """
    from gpusq_deploy.artifacts import MeasureSettings, require_input
    from gpusq_deploy.benchmarks import find_subject, record
    from gpusq_deploy.compile import RequestError

    heard = reporter or SILENT
    for place in (path, *([] if reference is None else [reference])):
        require_input(Path(place))
    subject = find_subject(Path(path), runtime)
    if reference is not None:
        if subject.choice.name == "onnxruntime":
            raise RequestError("--reference is for an engine: ONNX Runtime is the reference itself")
        subject = subject._replace(reference=Path(reference))
    heard.say(f"runtime: {subject.choice.name} ({subject.choice.reason})")
    settings = MeasureSettings(warmup=warmup, iterations=iterations, repeats=repeats)
    chosen = subject.default_batches if batches is None else tuple(batches)
    return record(subject, chosen, settings, threads=threads, cuda_graph=cuda_graph, progress=heard.progress)
