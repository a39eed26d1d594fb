"""Check a checkpoint, an ONNX model or a bundle: 2:4, Q/DQ, digests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.artifacts.finding import Finding
from gpusq_deploy.artifacts.sparsity import LayerSparsity, SparsityRecord, SparsityReport
from gpusq_deploy.bundle import MODEL, damaged_files, kind_of, read_bundle
from gpusq_deploy.explain import LayerExplanation, explain_layers, meaning_of
from gpusq_deploy.graph.layers import graph_sparsity
from gpusq_deploy.graph.lint import lint
from gpusq_deploy.graph.mapped import map_model
from gpusq_deploy.packed import PACKED, packed_faults, require_dense
from gpusq_deploy.recipe import load_recipe
from gpusq_deploy.sparsity import require_known_layers, sparsity_report, violation_text, worst_text
from gpusq_deploy.targets import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What was looked at, the 2:4 state of its layers, and everything found wrong.

    `remarks` tell what of a checkpoint's file was changed or left out while reading it.
    """

    kind: str
    sparsity: SparsityReport
    sparsity_asked: bool
    findings: tuple[Finding, ...]
    remarks: tuple[str, ...] = ()


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
    model = map_model(path / MODEL)
    record = SparsityRecord(method="as the manifest says", layers=expected)
    report = graph_sparsity(model, source=MODEL, recipe=load_recipe(None), record=record, only_seen=True)
    packed = _packed_findings(path, model, report) if (path / PACKED).exists() else ()
    return _validation("bundle", report, [*damaged, *lint(model), *packed], sparsity_asked=asked)


def _packed_findings(path: Path, model: ir.Model, report: SparsityReport) -> Iterator[Finding]:
    for fault in packed_faults(model, report, path):
        yield Finding(rule="packed", place=str(path), what=fault, hint="build the bundle again, or copy it again")


def _validate_model(path: Path, recipe: Path | None) -> Validation:
    model = map_model(path)
    report = graph_sparsity(model, source=path.name, recipe=load_recipe(recipe), only_seen=True)
    return _validation("ONNX model", report, lint(model), sparsity_asked=True)


def _validate_checkpoint(path: Path, arch: ArchSpec | None, recipe: Path | None, state_dict: str | None) -> Validation:
    from gpusq_deploy.checkpoint.weights import weights_in_file

    weights, record, remarks = weights_in_file(path, arch, state_dict=state_dict)
    report = sparsity_report(weights, source=path.name, recipe=load_recipe(recipe), record=record)
    require_known_layers(record, report)
    return replace(_validation("checkpoint", report, [], sparsity_asked=True), remarks=remarks)


def _validation(kind: str, report: SparsityReport, findings: Iterable[Finding], *, sparsity_asked: bool) -> Validation:
    broken = _sparsity_findings(report.broken) if sparsity_asked else ()
    return Validation(kind=kind, sparsity=report, sparsity_asked=sparsity_asked, findings=(*broken, *findings))


def _sparsity_findings(broken: Iterable[LayerSparsity]) -> Iterator[Finding]:
    for layer in broken:
        meaning, hint = meaning_of(layer.diagnosis)
        half = f"{layer.zero_fraction:.0%} of it is zero; " if layer.zero_fraction >= 0.4 else ""
        what = violation_text(layer)
        told = f"{half}{meaning}" if layer.diagnosis not in {"dense", "unaligned"} else ""
        yield Finding(
            rule="not-2:4",
            place=layer.layer,
            what="; ".join(part for part in (what, worst_text(layer), told) if part),
            hint=hint if "gpusq-compress" in hint else f"{hint}; gpusq-compress makes it 2:4",
        )
