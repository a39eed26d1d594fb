"""Export: from a checkpoint to a float graph in its canonical form, compared with torch, or with the file it is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.artifacts import MODEL, BatchRange, Recipe
from gpusq_deploy.calibration import SessionModule
from gpusq_deploy.compile.accuracy_gate import require_checkable
from gpusq_deploy.compile.export_check import check_export
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.compile.rewrite_selection import all_rewrites, find_probe, measured_rewrites, require_parsable
from gpusq_deploy.frontend import MODELS_OWN, Checkpoint, Names, drop_weights, export_float_model, release_weights
from gpusq_deploy.graph import SIMPLE, PassLog, heard, run_passes, save_scratch
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import MergedGraph, merge_qkv
from gpusq_deploy.sparsity import graph_sparsity


@dataclass(frozen=True, kw_only=True, slots=True)
class FloatGraph:
    """A checkpoint's float graph: what every recipe starts from.

    Attributes:
        checkpoint: Where it comes from; its weights are the graph's.
        model: The graph; its weights are mapped from `file`.
        file: The same as ONNX: what a built graph is compared with. It lies in the caller's folder.
        difference: Largest difference from the model as it was given, relative.
        notes: Which rewrites were applied, for the plan.
        log: Hears the passes that the graph goes through.
    """

    checkpoint: Checkpoint
    model: ir.Model
    file: Path
    difference: float
    notes: tuple[str, ...]
    log: PassLog

    def for_recipe(self, recipe: Recipe) -> MergedGraph:
        """The graph with the projections merged that a recipe decides alike, and the 2:4 state that it expects."""
        return merged_graph(self.model, self.checkpoint, recipe, self.log)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """How a float graph is made: the batch sizes that it takes, its opset, and the names of its inputs and outputs."""

    batch: BatchRange
    opset: int
    names: Names = MODELS_OWN

    @classmethod
    def of(cls, request: BuildRequest) -> ExportOptions:
        """Those of a build."""
        names = Names(input=request.input_name, outputs=request.output_names)
        return cls(batch=request.batch, opset=request.opset, names=names)


def export_graph(
    request: BuildRequest, checkpoint: Checkpoint, folder: Path, reporter: Reporter, log: PassLog
) -> FloatGraph:
    """The export stage: the graph in its canonical form, in a folder, compared with torch or the ONNX file.

    The checkpoint's module has no weights afterwards: they are the graph's.

    Raises:
        GpusqError: The exporter refuses the model, the compiler can't parse it, its outputs can't be held against the
            limits that were asked, or it answers otherwise than the model as it was given.
    """
    simple = simple_graph(checkpoint, ExportOptions.of(request), reporter, log)
    require_checkable(request, simple)
    # Nobody reads weights while graphs are compiled, and a compiler needs room.
    release_weights(checkpoint.module)
    if request.rewrites == "all":
        model, notes = all_rewrites(simple, reporter, log)
    else:
        model, notes = measured_rewrites(simple, find_probe(request), reporter, log)
    require_parsable(model, request)
    file = folder / MODEL
    save_scratch(model, file, lambda done, total: reporter.progress("writing", done, total))
    difference = check_export(checkpoint, file, request.batch, reporter)
    drop_weights(checkpoint.module)
    if isinstance(checkpoint.module, SessionModule):
        checkpoint.module.close()
    return FloatGraph(checkpoint=checkpoint, model=model, file=file, difference=difference, notes=notes, log=log)


def canonical_graph(checkpoint: Checkpoint, options: ExportOptions, reporter: Reporter) -> ir.Model:
    """Exported, its constants folded, and rewritten for speed: what is calibrated, by every command.

    Raises:
        GpusqError: The exporter refuses the model.
    """
    log = PassLog()
    return all_rewrites(simple_graph(checkpoint, options, reporter, log), reporter, log).model


def merged_graph(model: ir.Model, checkpoint: Checkpoint, recipe: Recipe, log: PassLog | None = None) -> MergedGraph:
    """A checkpoint's canonical graph in the form that a recipe gives it; see `FloatGraph.for_recipe`."""
    stored = graph_sparsity(model, source=checkpoint.file, recipe=recipe, record=checkpoint.sparsity)
    return merge_qkv(model, stored, recipe, checkpoint.sparsity, log)


def simple_graph(checkpoint: Checkpoint, options: ExportOptions, reporter: Reporter, log: PassLog) -> ir.Model:
    """Exported, its constants folded.

    Raises:
        GpusqError: The exporter refuses the model.
    """
    if checkpoint.given is None:
        reporter.say(f"exporting {checkpoint.arch} to ONNX opset {options.opset}")
    else:
        own = checkpoint.given.model.opset_imports.get("", 0)
        reporter.say(f"converting {checkpoint.arch} to ONNX opset {max(own, options.opset)}")
    exported = export_float_model(
        checkpoint,
        batch=options.batch,
        opset=options.opset,
        names=options.names,
        progress=lambda done, total: reporter.progress("exporting", done, total),
    )
    return run_passes(exported, SIMPLE, after=heard("simplifying", SIMPLE, reporter, log.after(exported)))
