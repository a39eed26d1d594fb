"""How a bundle looks on a terminal and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from gpusq_deploy.artifacts import (
    EQUAL_DB,
    BuiltEngine,
    CompressedIndex,
    CostEstimate,
    PruningLoss,
    Verification,
    builtins_from_value,
)
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.report.cost_text import cost_text, cost_verdict, layer_costs_line
from gpusq_deploy.bundle.report.counting import counting_of
from gpusq_deploy.bundle.report.headline import headline, no_engine_text
from gpusq_deploy.bundle.report.tables import print_pairs, result_console
from gpusq_deploy.bundle.report.terminal_chain import print_engine, print_layer, print_plan
from gpusq_deploy.bundle.report.terminal_drift import drift_line, print_drift
from gpusq_deploy.bundle.report.warnings import (
    compared_text,
    figures_text,
    outputs_text,
    producer_text,
    receipt_doubts,
    task_text,
)
from gpusq_deploy.numerics import counting_text
from gpusq_deploy.sparsity import PACKED, compressed_line, packed_index
from gpusq_deploy.text import counted

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


def _rows(bundle: Bundle) -> list[tuple[str, str]]:
    manifest, plan, receipt = bundle.manifest, bundle.plan, bundle.receipt
    packed, limits = _packed(bundle), _limits(bundle)
    noise = "random data: ranges mean nothing, don't deploy this"
    return [
        ("model", f"{manifest.source.file}, {manifest.source.arch}"),
        ("layers", _layer_counts(bundle)),
        ("batch", str(manifest.batch)),
        *([("packed", compressed_line(packed))] if packed is not None else []),
        *([("calibration", noise)] if manifest.synthetic_calibration else []),
        *([("task", task_text(receipt.accuracy))] if receipt.accuracy is not None else []),
        *([("pruned", compared_text(receipt.pruning))] if receipt.pruning is not None else []),
        *(("as trained", producer_text(found)) for found in receipt.producer),
        *([("verified", f"{limits} reached")] if limits and _compared(bundle) == "verified" else []),
        *(("warning", warning) for warning in receipt_doubts(receipt)),
        *((f"engine {engine.target}", _engine_text(engine, bundle)) for engine in receipt.engines),
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
            console.print(f"{_engine_text(engine, bundle)}\nread from: {engine.source}", markup=False)
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
    for line in _accuracy_lines(bundle):
        console.print(line, soft_wrap=True, markup=False)
    for note in bundle.plan.notes if layer is None else ():
        console.print(f"note: {note}", markup=False, highlight=False)
    for warning in receipt_doubts(bundle.receipt):
        console.print(f"[bold]warning[/]: {warning}")
    for shortfall in bundle.receipt.shortfalls:
        console.print(f"[bold]refused[/]: {shortfall}")


def _accuracy_lines(bundle: Bundle) -> Iterator[str]:
    receipt = bundle.receipt
    if receipt.pruning is not None:
        yield f"pruned: {pruning_text(receipt.pruning)}"
    yield f"{_compared(bundle)}: {verification_text(receipt.verification)}"
    if receipt.accuracy is not None:
        yield f"task: {task_text(receipt.accuracy)}"
    for found in receipt.producer:
        yield f"as trained: {producer_text(found)}"


def pruning_text(loss: PruningLoss) -> str:
    """The pruned float model beside the dense one; in a second line on what."""
    return f"{figures_text(loss)}, against the dense model\n  {loss.note}"


def verification_text(verification: Verification | None) -> str:
    """The built model beside the float one; in a second line on what."""
    if verification is None:
        return "no: ONNX Runtime's CPU provider has no BF16 kernels"
    measured = not (verification.constant or verification.synthetic or verification.cosine is None)
    cosine = f", cosine {verification.cosine:.5f}" if measured else ""
    return (
        f"{outputs_text(verification)}{cosine}, against the {verification.reference} model\n"
        f"  {verification.note}{_rewrites_text(verification)}"
    )


def _compared(bundle: Bundle) -> str:
    """What a comparison is called: "verified" only against limits that were asked and reached; else nobody judged."""
    unproven = bundle.receipt.verification is None or bool(bundle.receipt.shortfalls)
    return "compared" if unproven or not _limits(bundle) else "verified"


def _limits(bundle: Bundle) -> str:
    """What was asked of the accuracy, by its options; empty where nothing was."""
    options = bundle.manifest.options
    asked = {"--min-sqnr": options.min_sqnr, "--min-agreement": options.min_agreement}
    return " and ".join(f"{name} {limit:g}" for name, limit in asked.items() if limit is not None)


def _rewrites_text(verification: Verification) -> str:
    fused = verification.fused_sqnr_db
    if fused is None:
        return ""
    answer = "the same answer" if fused >= EQUAL_DB else f"SQNR {fused:.1f} dB to that answer"
    return f"; with optimisations on, {answer} ({counted(verification.fused_images, 'sample')})"


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


def _layer_counts(bundle: Bundle) -> str:
    layers = bundle.plan.layers
    coded = [layer.precision for layer in layers if layer.weight is not None]
    sparse = sum(layer.sparse for layer in layers)
    counts = ", ".join(f"{coded.count(name)} {name.upper()}" for name in sorted({*coded}) or ["int8"])
    rest = bundle.plan.float_type.upper()
    return f"{counts} of {counted(len(layers), 'weighted layer')}, {sparse} with 2:4 weights; everything else {rest}"


def _engine_text(engine: BuiltEngine, bundle: Bundle) -> str:
    gemms = ", ".join(f"{count} {precision}" for precision, count in sorted(engine.totals.gemms.items()))
    run = "" if engine.executed else "; not run: no such GPU here"
    return (
        f"{engine.gpus} (SM {engine.compute_capability}): {engine.engine_bytes / 1e6:.1f} MB "
        f"by {engine.backend} {engine.backend_version}, {engine.totals.kernels} kernels for batch "
        f"{bundle.manifest.batch}, GEMMs {gemms}, "
        f"{counted(engine.totals.attention_fused, 'fused attention')}{run}"
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
