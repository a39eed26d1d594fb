"""Check a checkpoint, an ONNX model or a bundle: 2:4, Q/DQ, digests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.artifacts import (
    MODEL,
    ArchSpec,
    FileAccount,
    Finding,
    LayerSparsity,
    SparsityRecord,
    SparsityReport,
    load_recipe,
    require_input,
)
from gpusq_deploy.bundle.files import damaged_files, read_bundle
from gpusq_deploy.bundle.report.sparse_chain import LayerExplanation, explain_layers, meaning_of
from gpusq_deploy.engines import Target
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import kind_of
from gpusq_deploy.graph import Unread, lint, map_model, unread_weights
from gpusq_deploy.sparsity import (
    PACKED,
    graph_sparsity,
    packed_faults,
    require_dense,
    require_known_layers,
    sparsity_report,
    unread_tensors,
    violation_text,
    without_lost_masks,
    worst_text,
)
from gpusq_deploy.text import counted, some

_NAME_IT = "name the architecture with --arch, or the state dict with --state-dict; docs/sparsity.md says what is read"
# Every group is broken there: which is the first or the worst tells nothing.
_ALIKE = frozenset({"dense", "mask lost"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What was looked at, the 2:4 state of its layers, and everything found wrong.

    `remarks` tell what of a file was changed or left out while reading it, and what there was nothing of. `explained`
    says of each layer why it does or doesn't run sparse, on each GPU that was asked for. `account` says what a file is,
    who wrote it, and what of it is read; a bundle has its manifest instead.
    """

    kind: str
    sparsity: SparsityReport
    sparsity_asked: bool
    findings: tuple[Finding, ...]
    remarks: tuple[str, ...] = ()
    explained: tuple[LayerExplanation, ...] = ()
    account: FileAccount | None = None


def validate(
    path: Path, *, arch: ArchSpec | None = None, recipe: Path | None = None, state_dict: str | None = None
) -> Validation:
    """Check whatever `path` is.

    Args:
        path: A bundle's folder, an `.onnx` file, or a checkpoint, which may be a folder of save_pretrained.
        arch: The checkpoint's architecture, where it doesn't describe itself. Without one, every 2-D and 4-D
            `*.weight` of a state dict counts as a layer.
        recipe: Which layers should be 2:4 where the checkpoint doesn't say; None is the default recipe.
        state_dict: Which of the checkpoint's state dicts, where it holds several.

    Raises:
        GpusqError: It can't be read.
    """
    require_input(path)
    kind = kind_of(path)
    if kind == "bundle":
        return _validate_bundle(path)
    if kind == "ONNX model":
        return _validate_model(path, recipe)
    return _validate_checkpoint(path, arch, recipe, state_dict)


def explanations(path: Path, result: Validation, target: Target) -> tuple[LayerExplanation, ...]:
    """Per layer, why it does or doesn't run sparse on a target; a bundle's plan and receipt are its evidence."""
    if result.kind != "bundle":
        return explain_layers(result.sparsity.layers, target)
    bundle = read_bundle(path)
    built = next((engine for engine in bundle.receipt.engines if engine.target == target.name), None)
    return explain_layers(result.sparsity.layers, target, decisions=bundle.plan.layers, engine=built)


def _validate_bundle(path: Path) -> Validation:
    bundle = read_bundle(path)
    require_dense(path)
    damaged = [
        Finding(rule="digest", place=str(path), what=fault, hint="build the bundle again, or copy it again")
        for fault in damaged_files(path, bundle.manifest)
    ]
    asked = bundle.plan.sparse_asked
    expected = tuple(layer.layer for layer in bundle.manifest.sparsity.layers if layer.expected)
    model = _opened(path / MODEL)
    record = SparsityRecord(method="as the manifest says", layers=expected)
    report = graph_sparsity(model, source=MODEL, recipe=load_recipe(None), record=record, only_seen=True)
    report = _with_reasons(report, bundle.manifest.sparsity)
    report = report if asked else without_lost_masks(report)
    packed = _packed_findings(path, model, report) if (path / PACKED).exists() else ()
    findings = [*damaged, *lint(model), *packed, *_lost_layers(report, expected if asked else ())]
    unread, remarks = _told(_unread(model, report))
    return replace(_validation("bundle", report, [*findings, *unread], sparsity_asked=asked), remarks=remarks)


def _with_reasons(report: SparsityReport, manifest: SparsityReport) -> SparsityReport:
    """The report with the manifest's reasons why a layer should be 2:4 or not."""
    reasons = {layer.layer: layer.reason for layer in manifest.layers}
    layers = tuple(
        msgspec.structs.replace(layer, reason=reasons.get(layer.layer, layer.reason)) for layer in report.layers
    )
    return msgspec.structs.replace(report, layers=layers)


def _lost_layers(report: SparsityReport, expected: tuple[str, ...]) -> Iterator[Finding]:
    """Layers that should be 2:4 and that the graph doesn't have: nobody checked them."""
    lost = sorted({*expected} - {layer.layer for layer in report.layers})
    if lost:
        what = f"{counted(len(lost), 'layer')} that should be 2:4 can't be found in {MODEL}, so nobody checked them"
        yield Finding(rule="not-read", place=some(lost), what=what, hint="build the bundle again")


def _opened(path: Path) -> ir.Model:
    """A model to look at, its functions inlined."""
    model = map_model(path)
    if model.functions:
        common.InlinePass()(model)
        common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0)(model)
    return model


def _unread(model: ir.Model, report: SparsityReport) -> tuple[Unread, ...]:
    return unread_weights(model, [layer.tensor for layer in report.layers])


def _told(unread: Iterable[Unread]) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """What of the unread weights is a finding, and what is so small that it is only remarked upon."""
    found = tuple(unread)
    return tuple(one.finding() for one in found if not one.small), tuple(one.text() for one in found if one.small)


def _packed_findings(path: Path, model: ir.Model, report: SparsityReport) -> Iterator[Finding]:
    for fault in packed_faults(model, report, path):
        yield Finding(rule="packed", place=str(path), what=fault, hint="build the bundle again, or copy it again")


def _validate_model(path: Path, recipe: Path | None) -> Validation:
    model = _opened(path)
    report = graph_sparsity(model, source=path.name, recipe=load_recipe(recipe), only_seen=True)
    unread, remarks = _told(_unread(model, report))
    findings = [*lint(model), *unread]
    account = _model_account(model, report, remarks)
    if not report.layers and not unread and not remarks:
        remarks = ("the model has no stored weight of a GEMM or convolution: there was none to check",)
    return replace(_validation("ONNX model", report, findings, sparsity_asked=True), remarks=remarks, account=account)


def _model_account(model: ir.Model, report: SparsityReport, unused: tuple[str, ...]) -> FileAccount:
    producer = f"{model.producer_name or ''} {model.producer_version or ''}".strip()
    opsets = ", ".join(f"{domain or 'opset'} {version}" for domain, version in model.opset_imports.items())
    return FileAccount(
        form=f"ONNX model, IR {model.ir_version}, {opsets}",
        producers=(producer,) if producer else (),
        used=(f"the weights of {counted(len(report.layers), 'GEMM or convolution')}",),
        unused=unused,
    )


def _validate_checkpoint(path: Path, arch: ArchSpec | None, recipe: Path | None, state_dict: str | None) -> Validation:
    from gpusq_deploy.frontend import ForeignFormatError, form_of, weights_in_file

    try:
        found = weights_in_file(path, arch, state_dict=state_dict)
    except ForeignFormatError as error:
        account = FileAccount(form=form_of(path), producers=(error.producer,), unused=(f"the weights: {error.what}",))
        return replace(_unreadable(path, error), account=account)
    report = sparsity_report(found.layers, source=path.name, recipe=load_recipe(recipe), record=found.sparsity)
    require_known_layers(found.sparsity, report)
    findings = list(_unread_findings(path, report, found.shapes))
    result = _validation("checkpoint", report, findings, sparsity_asked=True)
    return replace(result, remarks=found.remarks, account=found.account)


def _unreadable(path: Path, error: GpusqError) -> Validation:
    """Weights of a form that only their producer reads: nobody checked them."""
    finding = Finding(rule="not-read", place=error.place or str(path), what=error.what, hint=error.hint or _NAME_IT)
    return _validation("checkpoint", SparsityReport(source=path.name, layers=()), [finding], sparsity_asked=True)


def _unread_findings(path: Path, report: SparsityReport, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Finding]:
    """What of a checkpoint looks like weights and wasn't checked; or that nothing was."""
    unread = unread_tensors(shapes, {layer.tensor for layer in report.layers})
    if unread:
        total, missed = (sum(math.prod(shapes[name]) for name in names) for names in (shapes, unread))
        verb = "is" if len(unread) == 1 else "are"
        what = (
            f"{counted(len(unread), 'tensor')} that may be {'a weight' if len(unread) == 1 else 'weights'} {verb} not "
            f"checked: {missed:,} parameters, {missed / total:.1%} of the file's"
        )
        yield Finding(rule="not-read", place=some(unread), what=what, hint=_NAME_IT)
    elif not report.layers:
        yield Finding(rule="not-read", place=str(path), what="the file has no weight that was checked", hint=_NAME_IT)


def _validation(kind: str, report: SparsityReport, findings: Iterable[Finding], *, sparsity_asked: bool) -> Validation:
    broken = _sparsity_findings(report.broken) if sparsity_asked else ()
    return Validation(kind=kind, sparsity=report, sparsity_asked=sparsity_asked, findings=(*broken, *findings))


def _sparsity_findings(broken: Iterable[LayerSparsity]) -> Iterator[Finding]:
    for layer in broken:
        meaning, hint = meaning_of(layer.diagnosis)
        parts: list[str] = [meaning]
        if layer.diagnosis not in _ALIKE:
            half = f"{layer.zero_fraction:.0%} of the weight is zero" if layer.zero_fraction >= 0.4 else ""
            told = meaning if layer.diagnosis != "unaligned" else ""
            parts = [violation_text(layer), worst_text(layer), half, told]
        yield Finding(
            rule="not-2:4",
            place=layer.layer,
            what="; ".join(part for part in parts if part),
            hint=hint if "gpusq-compress" in hint else f"{hint}; gpusq-compress makes it 2:4",
        )
