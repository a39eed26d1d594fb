"""A bundle's page: report.html, and what gpusq-inspect --html writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpusq_deploy.artifacts import Drift, Verification, builtins_from_value
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.report.cost_text import cost_text, layer_costs_line
from gpusq_deploy.bundle.report.counting import counting_of
from gpusq_deploy.bundle.report.html.engine_part import engine_part, planned_part
from gpusq_deploy.bundle.report.html.network import NOISIEST
from gpusq_deploy.bundle.report.html.page import render_page
from gpusq_deploy.bundle.report.html.plots import line_plot
from gpusq_deploy.bundle.report.html.values import CostRow, DriftRow, EnginePart, FileRow, LatencyPart
from gpusq_deploy.bundle.report.html.verdict import Explained, tasks, verdict, verdict_cards
from gpusq_deploy.bundle.report.layer_rows import explained_engine
from gpusq_deploy.bundle.report.sentences import accuracy_texts, layer_counts_text
from gpusq_deploy.bundle.report.terminal import bundle_json
from gpusq_deploy.engines import MeasuredKernels
from gpusq_deploy.numerics import counting_text

# A full bar.
_MOST_DB = 60.0


def report_page(
    bundle: Bundle, *, measured: Mapping[str, MeasuredKernels] | None = None, latency: Sequence[LatencyPart] = ()
) -> str:
    """The page of a bundle. Equal bundles give equal bytes: of when and how fast it was built, it says nothing.

    Args:
        bundle: What is told of.
        measured: What a profiler saw of each engine's kernels, by target.
        latency: What gpusq-bench measured of it.
    """
    explained = [(engine, explained_engine(bundle, engine)) for engine in bundle.receipt.engines]
    found = verdict_cards(bundle, "; ".join(part.title for part in latency if part.of_engine))
    return render_page(
        "report.html.j2",
        title=f"{bundle.manifest.source.file}: what was built",
        arch=str(bundle.manifest.source.arch),
        verdict=verdict(found),
        cards=found,
        tasks=tasks(bundle, found, explained),
        fingerprint=_fingerprint(bundle),
        accuracy=_accuracy(bundle),
        engines=_engines(bundle, explained, measured or {}),
        cost=_cost(bundle),
        latency=latency,
        counted=(layer_counts_text(bundle), *counting_text(counting_of(bundle.plan)).split("\n")),
        files=_files(bundle),
        provenance=tuple(_provenance(bundle)),
        notes=(*bundle.plan.notes, *bundle.manifest.notes),
        data=_data(bundle, explained),
    )


def _engines(bundle: Bundle, explained: Explained, measured: Mapping[str, MeasuredKernels]) -> tuple[EnginePart, ...]:
    parts = [engine_part(bundle, engine, chains, measured.get(engine.target)) for engine, chains in explained]
    return tuple(parts or [planned_part(bundle)])


def _fingerprint(bundle: Bundle) -> tuple[tuple[str, str], ...]:
    return (
        ("checkpoint", bundle.manifest.source.digest),
        ("model.onnx", bundle.receipt.model_digest),
        *((engine.engine_file, engine.engine_digest) for engine in bundle.receipt.engines),
    )


def _accuracy(bundle: Bundle) -> dict[str, Any]:
    """The texts about each comparison, and the error behind each block and layer as rows and as a plot."""
    found = bundle.receipt.verification
    blocks = () if found is None or found.synthetic else found.blocks
    layers = () if found is None or found.synthetic else found.layers
    marks = {} if found is None else _marks(found)
    worst = min((layer.sqnr_db for layer in layers), default=None)
    return {
        "texts": list(accuracy_texts(bundle)),
        "samples": 0 if found is None else found.images,
        "layer_samples": 0 if found is None else found.layer_images,
        "plot": line_plot([block.sqnr_db for block in blocks], across="block, in the graph's order", up="SQNR, dB"),
        "blocks": tuple(_drift_row(block, marks.get(block.module, "")) for block in blocks),
        "layers": tuple(_drift_row(layer, NOISIEST[0] if layer.sqnr_db == worst else "") for layer in layers),
    }


def _marks(found: Verification) -> dict[str, str]:
    return {block.module: mark for block, mark in zip(found.noisiest(len(NOISIEST)), NOISIEST, strict=False)}


def _drift_row(drift: Drift, mark: str) -> DriftRow:
    return DriftRow(
        module=drift.module,
        decibels=f"{drift.sqnr_db:.1f}",
        median=f"{drift.median_sqnr_db:.1f}",
        cosine=f"{drift.cosine:.5f}",
        share=min(max(drift.sqnr_db / _MOST_DB, 0.0), 1.0),
        mark=mark,
    )


def _cost(bundle: Bundle) -> dict[str, Any] | None:
    cost = bundle.receipt.cost
    if cost is None:
        return None
    rows = tuple(
        CostRow(
            layer=each.layer,
            kernels=f"{each.built.kernels} / {each.unquantised.kernels}",
            megabytes=f"{each.built.bytes_moved / 1e6:.2f} / {each.unquantised.bytes_moved / 1e6:.2f}",
            microseconds=f"{_microseconds(each.built.microseconds)} / {_microseconds(each.unquantised.microseconds)}",
            pays=each.pays,
        )
        for each in cost.layers
    )
    return {"what": cost.what, "target": cost.target, "texts": (cost_text(cost), layer_costs_line(cost)), "rows": rows}


def _microseconds(time: float | None) -> str:
    return "unknown" if time is None else f"{time:.1f}"


def _files(bundle: Bundle) -> tuple[FileRow, ...]:
    files = [entry for entry in bundle.manifest.files if not entry.path.endswith(".html")]
    total = sum(entry.size for entry in files) or 1
    return tuple(FileRow(entry.path, f"{entry.size:,}", entry.size / total, entry.digest) for entry in files)


def _provenance(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    yield "checkpoint", f"{manifest.source.file} ({manifest.source.format})"
    yield "architecture", str(manifest.source.arch)
    yield "recipe", f"{manifest.recipe}; everything else {bundle.plan.float_type.upper()}"
    yield "batch", f"{manifest.batch} (least : best : most)"
    yield "opset", str(manifest.opset)
    yield from ((f"input {name}", _shape(shape)) for name, shape in manifest.inputs.items())
    yield from ((f"output {name}", _shape(shape)) for name, shape in manifest.outputs.items())
    for group, value in (("preprocessing", manifest.preprocessing), ("options", manifest.options)):
        said = [
            f"{name} = {_word(each)}" for name, each in builtins_from_value(value).items() if each not in (None, [])
        ]
        yield group, ", ".join(said)
    yield "versions", ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join("N" if size < 0 else str(size) for size in sizes)


def _word(value: object) -> str:
    words = {True: "yes", False: "no"}
    return words[value] if isinstance(value, bool) else str(value)


def _data(bundle: Bundle, explained: Explained) -> dict[str, Any]:
    """All that is shown, for programs: without what differs from one build of the same inputs to the next."""
    summary = {name: value for name, value in bundle_json(bundle).items() if name != "bundle"}
    receipt: dict[str, Any] = builtins_from_value(bundle.receipt)
    for entry, (_, chains) in zip(receipt["engines"], explained, strict=True):
        del entry["build_seconds"], entry["engine_layers"]
        entry["explained"] = builtins_from_value(chains)
    plan: dict[str, Any] = builtins_from_value(bundle.plan)
    return {"schema": "gpusq.report/1", "summary": summary, "plan": plan, "receipt": receipt}
