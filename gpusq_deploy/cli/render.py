"""How a bundle looks on a terminal and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from gpusq_deploy.artifacts.packed import PackedIndex
from gpusq_deploy.artifacts.receipt import BuiltEngine, Verification
from gpusq_deploy.bundle import Bundle
from gpusq_deploy.cli.explain import chain_rows, explained_engine
from gpusq_deploy.packed import PACKED, packed_index, packed_line


def bundle_json(bundle: Bundle) -> dict[str, Any]:
    """The short form of a bundle: what a script wants to know after a build."""
    weighted = bundle.plan.layers
    return {
        "bundle": str(bundle.path),
        "source": bundle.manifest.source.file,
        "arch": str(bundle.manifest.source.arch),
        "recipe": bundle.plan.recipe,
        "remainder": bundle.plan.remainder,
        "batch": str(bundle.manifest.batch),
        "layers": len(weighted),
        "int8_layers": sum(layer.precision == "int8" for layer in weighted),
        "sparse_layers": sum(layer.sparse for layer in weighted),
        "packed": _packed_json(bundle),
        "synthetic_calibration": bundle.manifest.synthetic_calibration,
        "verification": _verification_json(bundle.receipt.verification),
        "engines": [_engine_json(engine) for engine in bundle.receipt.engines],
        "skipped": [
            {"target": entry.target, "reason": entry.reason, "command": entry.command}
            for entry in bundle.receipt.skipped
        ],
        "notes": list(bundle.plan.notes),
    }


def print_bundle(bundle: Bundle) -> None:
    """The result of a build, on stdout."""
    console = Console()
    manifest, plan = bundle.manifest, bundle.plan
    table = Table(title=f"{bundle.path}", title_justify="left", show_header=False, box=None)
    table.add_row("model", f"{manifest.source.file}, {manifest.source.arch}")
    table.add_row("layers", _layer_counts(bundle))
    table.add_row("remainder", plan.remainder)
    table.add_row("batch", str(manifest.batch))
    packed = _packed(bundle)
    if packed is not None:
        table.add_row("packed", packed_line(packed))
    if manifest.synthetic_calibration:
        table.add_row("[bold]calibration[/]", "[bold]random data: ranges mean nothing, don't deploy this[/]")
    table.add_row("verified", verification_text(bundle.receipt.verification))
    for engine in bundle.receipt.engines:
        table.add_row(f"engine {engine.target}", _engine_text(engine))
    for entry in bundle.receipt.skipped:
        table.add_row(f"no engine {entry.target}", f"{entry.reason}\non the device: {entry.command}")
    for note in plan.notes:
        table.add_row("note", note)
    console.print(table)
    console.print(f"why each layer is what it is: gpusq-inspect {bundle.path}", soft_wrap=True)


def print_receipt(bundle: Bundle, *, layer: str | None) -> None:
    """The receipt layer by layer, or everything about one layer."""
    console = Console()
    for engine in bundle.receipt.engines:
        if layer is None:
            console.print(_layer_table(bundle, engine))
            console.print(f"{_engine_text(engine)}\nread from: {engine.source}")
        else:
            _print_layer(console, bundle, engine, layer)
    for entry in bundle.receipt.skipped:
        console.print(f"no engine for {entry.target}: {entry.reason}; on the device: {entry.command}")
    console.print(f"verified: {verification_text(bundle.receipt.verification)}")


def verification_text(verification: Verification | None) -> str:
    """One sentence."""
    if verification is None:
        return "no (see the notes)"
    agreement = "" if verification.top1_agreement is None else f", top-1 agreement {verification.top1_agreement:.1%}"
    return f"SQNR {verification.sqnr_db:.1f} dB, cosine {verification.cosine:.5f}{agreement}: {verification.note}"


def _packed(bundle: Bundle) -> PackedIndex | None:
    path = bundle.path / PACKED
    return packed_index(path) if path.is_file() else None


def _packed_json(bundle: Bundle) -> dict[str, Any] | None:
    index = _packed(bundle)
    return (
        None
        if index is None
        else {
            "file": PACKED,
            "weights": len(index.tensors),
            "packed_bytes": index.packed_bytes,
            "int8_bytes": index.int8_bytes,
            "float32_bytes": index.float32_bytes,
            "of_int8": index.of_int8,
            "times_smaller": index.times_smaller,
        }
    )


def _layer_counts(bundle: Bundle) -> str:
    layers = bundle.plan.layers
    int8 = sum(layer.precision == "int8" for layer in layers)
    sparse = sum(layer.sparse for layer in layers)
    return (
        f"{len(layers)} weighted: {int8} INT8, {len(layers) - int8} {bundle.plan.remainder}; {sparse} with 2:4 weights"
    )


def _engine_text(engine: BuiltEngine) -> str:
    gemms = ", ".join(f"{count} {precision}" for precision, count in sorted(engine.totals.gemms.items()))
    run = "" if engine.executed else "; not run: no such GPU here"
    return (
        f"{engine.gpus} (SM {engine.compute_capability}): {engine.plan_bytes / 1e6:.1f} MB "
        f"by {engine.backend} {engine.backend_version}, {engine.totals.kernels} kernels, GEMMs {gemms}, "
        f"{engine.totals.attention_fused} fused attentions{run}"
    )


def _layer_table(bundle: Bundle, engine: BuiltEngine) -> Table:
    table = Table(title=f"engine {engine.target}", title_justify="left")
    for heading in ("layer", "N x K", "asked", "built", "2:4", "runs sparse"):
        table.add_column(heading, no_wrap=heading != "layer")
    decisions = {decision.layer: decision for decision in bundle.plan.layers}
    for layer in engine.layers:
        decision = decisions[layer.layer]
        table.add_row(
            layer.layer,
            f"{decision.n} x {decision.k}",
            layer.asked,
            layer.precision or "not found",
            ("valid" if layer.sparse_weights_valid else "no") if layer.sparse_asked else "not asked",
            layer.sparse_executed,
        )
    return table


def _print_layer(console: Console, bundle: Bundle, engine: BuiltEngine, name: str) -> None:
    decisions = {decision.layer: decision for decision in bundle.plan.layers}
    chains = {found.layer: chain_rows(found) for found in explained_engine(bundle, engine)}
    for layer in engine.layers:
        if not f"{layer.layer}.".startswith(f"{name}."):
            continue
        decision = decisions[layer.layer]
        table = Table(title=f"{layer.layer} on {engine.target}", title_justify="left", show_header=False, box=None)
        table.add_row("GEMM", f"N = {decision.n}, K = {decision.k}, {decision.macs} multiply-accumulates a sample")
        table.add_row("asked", f"{layer.asked}: {decision.precision_reason}")
        table.add_row("built as", f"{layer.precision or 'not found'}: {', '.join(layer.engine_layers) or 'no layer'}")
        for question, answer in chains.get(layer.layer, ()):
            table.add_row(f"2:4 {question}", answer)
        if decision.activation is not None:
            origin = f"amax {decision.activation.amax:.5g}, scale {decision.activation.scale:.5g}"
            table.add_row("input", f"{decision.activation.tensor}: {origin}, {decision.activation.origin}")
        console.print(table)


def _verification_json(verification: Verification | None) -> dict[str, Any] | None:
    if verification is None:
        return None
    return {
        "images": verification.images,
        "held_out": verification.held_out,
        "sqnr_db": verification.sqnr_db,
        "cosine": verification.cosine,
        "top1_agreement": verification.top1_agreement,
        "note": verification.note,
    }


def _engine_json(engine: BuiltEngine) -> dict[str, Any]:
    return {
        "target": engine.target,
        "gpus": engine.gpus,
        "compute_capability": engine.compute_capability,
        "backend": engine.backend,
        "backend_version": engine.backend_version,
        "plan": engine.plan_file,
        "plan_bytes": engine.plan_bytes,
        "kernels": engine.totals.kernels,
        "gemms": engine.totals.gemms,
        "attention_fused": engine.totals.attention_fused,
        "executed": engine.executed,
    }
