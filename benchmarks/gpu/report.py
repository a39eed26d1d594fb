"""What the GPU suite found, as Markdown: a table a step, then what didn't run with its reasons."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from gpusq_deploy.benchmarks.gpu.values import Finding, GpuReport
from gpusq_deploy.engines.layer_classes import STUB, sparse_tactic
from gpusq_deploy.text import by_reason, some

Row = tuple[str, ...]


def markdown_from_report(report: GpuReport) -> str:
    """The whole report."""
    machine = report.environment
    ways = ", ".join(way.name for way in report.ways.ways) or f"none ({report.ways.why_not})"
    lines = [
        f"# GPU suite, {machine.gpu or 'without a GPU: nothing below is a measurement'}",
        "",
        f"GPU: {machine.gpu or 'none'} ({report.compute_capability or 'no capability'}), driver "
        f"{machine.gpu_driver or 'unknown'}; CPU: {machine.cpu}, {machine.cores} cores; {report.created}",
        "",
        f"- plans that run here: {ways}",
        *(f"- {name}: {took} s" for name, took in report.seconds.items()),
        *(f"- {note}" for note in report.notes),
        *_error_of_predictions(report),
    ]
    for title, part in (
        ("Whose plans run", _possible(report)),
        ("Models", _models(report)),
        ("Sparse kernels seen", _sparse_names(report)),
        ("Which product runs sparse", _products(report)),
        ("torch", _torch(report)),
        ("The project's own GPU tests", _tests(report)),
        ("Not run", _not_run(report)),
    ):
        lines += ["", f"## {title}", "", *part]
    return "\n".join(lines) + "\n"


def prediction_errors(report: GpuReport) -> dict[str, float]:
    """Measured over predicted time of each model and batch size: 1 is a perfect prediction, which bounds from below."""
    pairs = {
        f"{one.name} b{one.facts.get('batch')}": (one.median_ms, one.number("predicted_us"))
        for one in report.of("models")
        if one.right
    }
    return {name: 1e3 * took / predicted for name, (took, predicted) in pairs.items() if took and predicted}


def _error_of_predictions(report: GpuReport) -> Iterator[str]:
    ratios = sorted(prediction_errors(report).values())
    if ratios:
        middle, span = statistics.median(ratios), f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        yield f"- measured over predicted time: {span}, median {middle:.2f} of {len(ratios)}"


def _possible(report: GpuReport) -> Iterator[str]:
    rows = [
        (one.name, _facts(one, "validity", "loads"), _number(one.number("sqnr_db")), _number(one.median_ms), _said(one))
        for one in report.of("possible")
    ]
    return table(("asked", "answer", "SQNR dB", "median ms", "said"), rows)


def _said(one: Finding) -> str:
    words = str(one.facts.get("diagnostics") or one.why_not or one.facts.get("said") or "")
    return " ".join(words.split())[:200].replace("|", "/")


def _models(report: GpuReport) -> Iterator[str]:
    headings = ("model", "way", "batch", "launch", "median ms", "images/s", "predicted ms", "SQNR dB", "sparse kernels")
    return table(headings, [_model_row(one) for one in report.of("models") if one.right])


def _model_row(one: Finding) -> Row:
    median, predicted, batch = one.median_ms, one.number("predicted_us"), one.number("batch")
    return (
        one.name,
        _facts(one, "way"),
        _number(batch),
        _facts(one, "launch"),
        _number(median),
        _number(1e3 * batch / median if median and batch else None),
        _number(predicted / 1e3 if predicted else None),
        _number(one.number("sqnr_db")),
        _sparse(one),
    )


def _sparse_names(report: GpuReport) -> Iterator[str]:
    """The sparse kernels that ran, each with where."""
    seen: dict[str, dict[str, None]] = {}
    for one in report.findings:
        for kernel in one.kernels:
            if sparse_tactic(kernel)[0] == "yes":
                seen.setdefault(kernel, {})[f"{one.name} ({one.step})"] = None
    for kernel, places in seen.items():
        yield f"- `{kernel}`: {some(list(places))}"
    if not seen:
        yield "None."


def _products(report: GpuReport) -> Iterator[str]:
    headings = ("product", "way", "writes", "median ms", "kernels µs", "TFLOP/s", "error", "sparse", "kernels")
    return table(headings, [_product_row(one) for one in report.of("products") if one.right])


def _product_row(one: Finding) -> Row:
    built = ["chosen when it is loaded" if kernel.tactic == STUB else kernel.tactic for kernel in one.built]
    names = dict.fromkeys(name for name in one.kernels or built if name)
    return (
        one.name,
        _facts(one, "way"),
        _facts(one, "writes"),
        _number(one.median_ms),
        _number(one.total_us),
        _number(_teraflops(one)),
        _number(one.number("error")),
        _sparse(one),
        ", ".join(names) or "unknown",
    )


def _torch(report: GpuReport) -> Iterator[str]:
    headings = ("N x K, batch, product", "median ms", "kernels µs", "TFLOP/s", "kernels")
    rows = [
        (
            one.name,
            _number(one.median_ms),
            _number(one.total_us),
            _number(_teraflops(one)),
            ", ".join(dict.fromkeys(one.kernels)) or "not seen",
        )
        for one in report.of("torch")
        if one.right
    ]
    return table(headings, rows)


def _tests(report: GpuReport) -> Iterator[str]:
    tests = report.of("tests")
    passed = sum(not one.why_not for one in tests)
    yield f"{passed} of {len(tests)} passed."


def _not_run(report: GpuReport) -> Iterator[str]:
    reasons = by_reason((one.name, f"{one.step}: {one.why_not}") for one in report.findings if one.why_not)
    for reason, names in reasons.items():
        yield f"- {len(names)}: {' '.join(reason.split())[:600]}: {some(names)}"
    if not reasons:
        yield "Nothing: everything ran."


def _teraflops(one: Finding) -> float | None:
    """By the kernels' own time where a profiler looked: of a small product a launch takes longer than the kernel."""
    took, flops = one.total_us or 1e3 * (one.median_ms or 0), one.number("flops")
    return flops / took / 1e6 if took and flops else None


def _sparse(one: Finding) -> str:
    found = one.sparse_kernels
    return "not seen" if found is None else f"{found} of {len(one.kernels)}"


def _facts(one: Finding, *names: str) -> str:
    return ", ".join(str(one.facts[name]) for name in names if one.facts.get(name) not in {None, ""})


def table(headings: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    """A Markdown table; one without rows says so."""
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * len(headings)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    if not rows:
        yield "| " + " | ".join(["none ran", *[""] * (len(headings) - 1)]) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
