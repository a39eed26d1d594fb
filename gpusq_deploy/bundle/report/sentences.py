"""Sentences about a bundle that the terminal and the page share."""

from __future__ import annotations

from collections.abc import Iterator

from gpusq_deploy.artifacts import EQUAL_DB, BuiltEngine, PruningLoss, Verification
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.bundle.report.warnings import figures_text, outputs_text, producer_text, task_text
from gpusq_deploy.text import counted


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


def accuracy_texts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """What each comparison is called, and what it found."""
    receipt = bundle.receipt
    if receipt.pruning is not None:
        yield "pruned", pruning_text(receipt.pruning)
    yield compared_word(bundle), verification_text(receipt.verification)
    if receipt.accuracy is not None:
        yield "task", task_text(receipt.accuracy)
    for found in receipt.producer:
        yield "as trained", producer_text(found)


def compared_word(bundle: Bundle) -> str:
    """What a comparison is called: "verified" only against limits that were asked and reached; else nobody judged."""
    unproven = bundle.receipt.verification is None or bool(bundle.receipt.shortfalls)
    return "compared" if unproven or not limits_text(bundle) else "verified"


def limits_text(bundle: Bundle) -> str:
    """What was asked of the accuracy, by its options; empty where nothing was."""
    options = bundle.manifest.options
    asked = {
        "--min-sqnr": options.min_sqnr,
        "--min-agreement": options.min_agreement,
        "--max-drop": options.max_drop,
    }
    return " and ".join(f"{name} {limit:g}" for name, limit in asked.items() if limit is not None)


def layer_counts_text(bundle: Bundle) -> str:
    """How many layers are of which precision, and how many have 2:4 weights."""
    layers = bundle.plan.layers
    coded = [layer.precision for layer in layers if layer.weight is not None]
    sparse = sum(layer.sparse for layer in layers)
    counts = ", ".join(f"{coded.count(name)} {name.upper()}" for name in sorted({*coded}) or ["int8"])
    rest = bundle.plan.float_type.upper()
    return f"{counts} of {counted(len(layers), 'weighted layer')}, {sparse} with 2:4 weights; everything else {rest}"


def engine_text(engine: BuiltEngine, bundle: Bundle) -> str:
    """For which GPUs, by whom, of how many kernels."""
    gemms = ", ".join(f"{count} {precision}" for precision, count in sorted(engine.totals.gemms.items()))
    run = "" if engine.executed else "; not run: no such GPU here"
    return (
        f"{engine.gpus} (SM {engine.compute_capability}): {engine.engine_bytes / 1e6:.1f} MB "
        f"by {engine.backend} {engine.backend_version}, {engine.totals.kernels} kernels for batch "
        f"{bundle.manifest.batch}, GEMMs {gemms}, "
        f"{counted(engine.totals.attention_fused, 'fused attention')}{run}"
    )


def _rewrites_text(verification: Verification) -> str:
    fused = verification.fused_sqnr_db
    if fused is None:
        return ""
    answer = "the same answer" if fused >= EQUAL_DB else f"SQNR {fused:.1f} dB to that answer"
    return f"; with optimisations on, {answer} ({counted(verification.fused_images, 'sample')})"
