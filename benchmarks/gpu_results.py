"""What the GPU suite found: raw samples as values, and a Markdown table of them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from gpusq_deploy.artifacts.base import Value
from gpusq_deploy.artifacts.runs import Environment
from gpusq_deploy.benchmarks.gemm_cases import GemmCase
from gpusq_deploy.engines.layers import STUB, sparse_tactic

# INT8 products write INT32, as torch's dense one does; the last writes INT8, as TensorRT's sparse kernels do.
Product = Literal["fp16 dense", "fp16 2:4", "int8 dense", "int8 2:4", "int8 2:4 to int8"]


class BuiltKernel(Value):
    """One kernel as the builder lists it; element types in the builder's words."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tactic: str


class Outcome(Value):
    """What came of running one thing.

    Attributes:
        samples_ms: Every sample, milliseconds of one inference; empty where it wasn't run.
        error: Largest difference from the reference: INT8 codes, or relative to the reference's largest value.
        kernels: Names of one inference's kernels, as a profiler saw them; empty where none could look.
        kernels_us: How long each of them ran, microseconds.
        why_not: Why it wasn't run, or failed; empty where it ran.
    """

    samples_ms: tuple[float, ...] = ()
    error: float | None = None
    kernels: tuple[str, ...] = ()
    kernels_us: tuple[float, ...] = ()
    why_not: str = ""

    @property
    def median_ms(self) -> float | None:
        """Median of the samples."""
        return statistics.median(self.samples_ms) if self.samples_ms else None

    @property
    def total_us(self) -> float | None:
        """How long all kernels ran together, gaps between them not counted; None where no profiler looked."""
        return sum(self.kernels_us) if self.kernels_us else None

    @property
    def sparse(self) -> str:
        """How many of the kernels are sparse, by their names."""
        if not self.kernels:
            return "not seen"
        found = sum(sparse_tactic(kernel)[0] == "yes" for kernel in self.kernels)
        return f"{found} of {len(self.kernels)}"


class CaseResult(Value):
    """One product on one backend: what was built, and what came of it."""

    case: GemmCase
    backend: str
    version: str
    kernels: tuple[BuiltKernel, ...]
    outcome: Outcome


class ModelResult(Value):
    """One model in one precision at one batch size on one backend; `sqnr_db` against ONNX Runtime, on two samples."""

    model: str
    precision: str
    backend: str
    batch: int
    sqnr_db: float | None
    outcome: Outcome


class Yardstick(Value):
    """One product by torch: what the silicon can do. [batch · tokens, K] by [K, N]."""

    k: int
    n: int
    batch: int
    product: Product
    outcome: Outcome


class SuiteReport(Value):
    """Everything that one run of the suite found, and what it couldn't."""

    schema: Literal["gpusq.gpu-suite/1"] = "gpusq.gpu-suite/1"
    created: str
    target: str
    environment: Environment
    cases: tuple[CaseResult, ...]
    models: tuple[ModelResult, ...]
    yardsticks: tuple[Yardstick, ...]
    notes: tuple[str, ...]


def markdown_from_report(report: SuiteReport) -> str:
    """Three tables, and what wasn't run with its reasons."""
    lines = [
        f"# GPU suite, {report.target}",
        "",
        f"GPU: {report.environment.gpu or 'none'}, driver {report.environment.gpu_driver or 'unknown'}; "
        f"CPU: {report.environment.cpu}; {report.created}",
        "",
        *(f"- {note}" for note in report.notes),
        "",
        "## Models",
        "",
        *_table(
            ("model", "precision", "backend", "batch", "median ms", "images/s", "SQNR dB", "sparse kernels"),
            [_model_row(result) for result in report.models if not result.outcome.why_not],
        ),
        "",
        *_sparse_names(report),
        "## Which product runs sparse",
        "",
        *_table(
            (
                "product",
                "backend",
                "kernels",
                "writes",
                "median ms",
                "kernels µs",
                "TFLOP/s",
                "error",
                "sparse",
                "tactic",
            ),
            [_case_row(result) for result in report.cases if result.kernels],
        ),
        "",
        "## torch",
        "",
        *_table(
            ("N x K", "batch", "product", "median ms", "kernels µs", "kernels"),
            [_yardstick_row(result) for result in report.yardsticks if not result.outcome.why_not],
        ),
        "",
        "## Not run",
        "",
        *_not_run(report),
    ]
    return "\n".join(lines) + "\n"


def _model_row(result: ModelResult) -> tuple[str, ...]:
    median = result.outcome.median_ms
    return (
        result.model,
        result.precision,
        result.backend,
        str(result.batch),
        _number(median),
        _number(result.batch / median * 1000 if median else None),
        _number(result.sqnr_db),
        result.outcome.sparse,
    )


def _case_row(result: CaseResult) -> tuple[str, ...]:
    median = result.outcome.median_ms
    writes = next((kernel.outputs for kernel in result.kernels if "Int8" in kernel.inputs), ())
    return (
        result.case.name,
        result.backend,
        str(len(result.kernels)),
        ", ".join(writes) or "unknown",
        _number(median),
        _number(result.outcome.total_us),
        _number(_teraflops(result.case.flops, result.outcome)),
        _number(result.outcome.error),
        result.outcome.sparse,
        ", ".join(dict.fromkeys(result.outcome.kernels or _tactics(result.kernels))) or "unknown",
    )


def _teraflops(flops: int, outcome: Outcome) -> float | None:
    """By the kernels' own time where a profiler looked: of a small product a launch takes longer than the kernel."""
    took_us = outcome.total_us or (outcome.median_ms or 0) * 1e3
    return flops / took_us / 1e6 if took_us else None


def _tactics(kernels: Sequence[BuiltKernel]) -> tuple[str, ...]:
    """What the builder says it picked, where no profiler looked: TensorRT-RTX, ahead of time, names its own layers."""
    return tuple(
        "chosen when it is loaded" if kernel.tactic == STUB else kernel.tactic for kernel in kernels if kernel.tactic
    )


def _sparse_names(report: SuiteReport) -> Iterator[str]:
    """The sparse kernels that ran in models, each with where."""
    seen: dict[str, dict[str, None]] = {}
    for one in report.models:
        for kernel in one.outcome.kernels:
            if sparse_tactic(kernel)[0] == "yes":
                seen.setdefault(kernel, {})[f"{one.model} {one.precision} b{one.batch} on {one.backend}"] = None
    yield from (f"- `{kernel}`: {', '.join(places)}" for kernel, places in seen.items())
    if seen:
        yield ""


def _yardstick_row(result: Yardstick) -> tuple[str, ...]:
    names = ", ".join(dict.fromkeys(result.outcome.kernels)) or "not seen"
    return (
        f"{result.n} x {result.k}",
        str(result.batch),
        result.product,
        _number(result.outcome.median_ms),
        _number(result.outcome.total_us),
        names,
    )


def _not_run(report: SuiteReport) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    entries: Iterable[tuple[str, Outcome]] = (
        *((f"{one.model} {one.precision} b{one.batch} on {one.backend}", one.outcome) for one in report.models),
        *((f"{one.case.name} on {one.backend}", one.outcome) for one in report.cases),
        *((f"torch {one.product} {one.n}x{one.k} b{one.batch}", one.outcome) for one in report.yardsticks),
    )
    for name, outcome in entries:
        if outcome.why_not:
            reasons.setdefault(outcome.why_not, []).append(name)
    for reason, names in reasons.items():
        yield f"- {len(names)}: {reason}: {', '.join(names[:4])}" + (", ..." if len(names) > 4 else "")
    if not reasons:
        yield "Nothing: everything ran."


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * len(headings)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    if not rows:
        yield "| " + " | ".join(["none ran", *[""] * (len(headings) - 1)]) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
