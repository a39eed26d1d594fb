"""How a bundle looks on a terminal and as JSON."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console

from gpusq_deploy.artifacts import (
    REPORT,
    BuiltEngine,
    CompressedIndex,
    CostEstimate,
    Verification,
    builtins_from_value,
)
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.report.cost_text import cost_text, cost_verdict, layer_costs_line
from gpusq_deploy.bundle.report.counting import counting_of
from gpusq_deploy.bundle.report.headline import headline, no_engine_text
from gpusq_deploy.bundle.report.sentences import (
    accuracy_texts,
    compared_word,
    engine_text,
    layer_counts_text,
    limits_text,
)
from gpusq_deploy.bundle.report.tables import print_pairs, result_console
from gpusq_deploy.bundle.report.terminal_chain import print_engine, print_layer, print_plan
from gpusq_deploy.bundle.report.terminal_drift import drift_line, print_drift
from gpusq_deploy.bundle.report.warnings import (
    NOISE,
    compared_text,
    producer_text,
    receipt_doubts,
    task_text,
)
from gpusq_deploy.numerics import counting_text
from gpusq_deploy.sparsity import PACKED, compressed_line, packed_index

# Notes on how the plan was made, which gpusq-inspect shows; the others say what isn't as was asked.
_DETAILS = ("graph rewrite", "merged ", "Q/K/V projections", "not quantised:", "INT8:", "FP8:", "INT4:")


def bundle_json(bundle: Bundle) -> dict[str, Any]:
    """The short form of a bundle: what a script wants to know after a build."""
    weighted = bundle.plan.layers
    return {
        "bundle": str(bundle.path),
        "source": bundle.manifest.source.file,
        "arch": str(bundle.manifest.source.arch),
        "recipe": bundle.plan.recipe,
        "remainder": bundle.plan.float_type,
        "batch": str(bundle.manifest.batch),
        "layers": len(weighted),
        "int8_layers": sum(layer.precision == "int8" for layer in weighted),
        "fp8_layers": sum(layer.precision == "fp8" for layer in weighted),
        "int4_layers": sum(layer.precision == "int4" for layer in weighted),
        "sparse_layers": sum(layer.sparse for layer in weighted),
        "counting": builtins_from_value(counting_of(bundle.plan)),
        "packed": _packed_json(bundle),
        "synthetic_calibration": bundle.manifest.synthetic_calibration,
        "verification": _verification_json(bundle.receipt.verification),
        "accuracy": builtins_from_value(bundle.receipt.accuracy),
        "pruning": builtins_from_value(bundle.receipt.pruning),
        "warnings": list(receipt_doubts(bundle.receipt)),
        "shortfalls": list(bundle.receipt.shortfalls),
        "engines": [_engine_json(engine) for engine in bundle.receipt.engines],
        "cost": _cost_json(bundle.receipt.cost),
        "skipped": builtins_from_value(bundle.receipt.skipped),
        "notes": list(bundle.plan.notes),
    }


def print_bundle(bundle: Bundle) -> None:
    """The result of a build, on stdout: three lines that most want to know, then the rest."""
    console = result_console()
    print_pairs(console, str(bundle.path), headline(bundle))
    print(flush=True)
    print_pairs(console, "", _rows(bundle), bold={"warning", "calibration"})
    print(f"\nreasons and details, layer by layer: {shlex.join(['gpusq-inspect', str(bundle.path)])}", flush=True)
    if (bundle.path / REPORT).is_file():  # bundles of older versions have none
        print(f"as a page: {bundle.path / REPORT}", flush=True)


def _rows(bundle: Bundle) -> list[tuple[str, str]]:
    manifest, plan, receipt = bundle.manifest, bundle.plan, bundle.receipt
    packed, limits = _packed(bundle), limits_text(bundle)
    return [
        ("model", f"{manifest.source.file}, {manifest.source.arch}"),
        ("layers", layer_counts_text(bundle)),
        ("batch", str(manifest.batch)),
        *([("packed", compressed_line(packed))] if packed is not None else []),
        *([("calibration", NOISE)] if manifest.synthetic_calibration else []),
        *([("task", task_text(receipt.accuracy))] if receipt.accuracy is not None else []),
        *([("pruned", compared_text(receipt.pruning))] if receipt.pruning is not None else []),
        *(("as trained", producer_text(found)) for found in receipt.producer),
        *([("verified", f"{limits} reached")] if limits and compared_word(bundle) == "verified" else []),
        *(("warning", warning) for warning in receipt_doubts(receipt)),
        *((f"engine {engine.target}", engine_text(engine, bundle)) for engine in receipt.engines),
        *([("speed", cost_verdict(receipt.cost, plan.recipe))] if receipt.cost is not None else []),
        *(
            (f"no engine {entry.target}", f"{entry.reason}\non the device: {entry.command}")
            for entry in receipt.skipped
        ),
        *(("note", note) for note in plan.notes if not note.startswith(_DETAILS)),
    ]


def print_receipt(bundle: Bundle, *, layer: str | None) -> None:
    """The receipt layer by layer, or everything about one layer."""
    console = result_console()
    for engine in bundle.receipt.engines:
        if layer is None:
            print_engine(console, bundle, engine)
            console.print(f"{engine_text(engine, bundle)}\nread from: {engine.source}", markup=False)
        else:
            print_layer(console, bundle, engine, layer)
    if not bundle.receipt.engines:
        print_plan(console, bundle, layer)
        console.print(f"engine: {no_engine_text(bundle)}", soft_wrap=True, markup=False, highlight=False)
    if layer is None:
        console.print(f"counted: {counting_text(counting_of(bundle.plan))}", soft_wrap=True, highlight=False)
    for entry in bundle.receipt.skipped:
        console.print(f"no engine for {entry.target}: {entry.reason}\n  on the device: {entry.command}", soft_wrap=True)
    if bundle.receipt.cost is not None:
        console.print(f"{bundle.receipt.cost.what} cost: {cost_text(bundle.receipt.cost)}", soft_wrap=True)
        if (line := layer_costs_line(bundle.receipt.cost)) and layer is None:
            console.print(line, soft_wrap=True)
    _print_verification(console, bundle, layer)


def _print_verification(console: Console, bundle: Bundle, layer: str | None) -> None:
    verification = bundle.receipt.verification
    if verification is not None and layer is None:
        print_drift(console, verification)
    for placed in bundle.plan.placed if layer is not None else ():
        if f"{placed.module}.".startswith(f"{layer}."):
            activation = f"amax {placed.activation.amax:.5g}, scale {placed.activation.scale:.5g}"
            console.print(f"{placed.module}, {placed.role}: INT8, {activation}: {placed.reason}", markup=False)
    if verification is not None and layer is not None and (line := drift_line(verification, layer)) is not None:
        console.print(f"behind {layer}: {line}")
    for word, text in accuracy_texts(bundle):
        console.print(f"{word}: {text}", soft_wrap=True, markup=False)
    for note in bundle.plan.notes if layer is None else ():
        console.print(f"note: {note}", markup=False, highlight=False)
    for warning in receipt_doubts(bundle.receipt):
        console.print(f"[bold]warning[/]: {warning}")
    for shortfall in bundle.receipt.shortfalls:
        console.print(f"[bold]refused[/]: {shortfall}")


def _packed(bundle: Bundle) -> CompressedIndex | None:
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


def _cost_json(cost: CostEstimate | None) -> dict[str, Any] | None:
    return None if cost is None else {**builtins_from_value(cost), "worse": cost.worse}


def _verification_json(verification: Verification | None) -> dict[str, Any] | None:
    if verification is None:
        return None
    content: dict[str, Any] = builtins_from_value(verification)
    for name in ("layers", "layer_images", "fused_images", "constant_others"):
        del content[name]
    return {
        **content,
        "others": {other.tensor: other.sqnr_db for other in verification.others},
        "agreements": {other.tensor: other.share for other in verification.agreements},
        "blocks": {block.module: block.sqnr_db for block in verification.blocks},
        "noisiest": [block.module for block in verification.noisiest(3)],
    }


def _engine_json(engine: BuiltEngine) -> dict[str, Any]:
    content: dict[str, Any] = builtins_from_value(engine)
    kept = ("target", "gpus", "compute_capability", "backend", "backend_version", "plan_bytes", "executed")
    return {"plan": engine.engine_file, **{name: content[name] for name in kept}, **content["totals"]}
