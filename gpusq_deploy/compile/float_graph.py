"""Export: from a checkpoint to a float graph in its canonical form, written to disk and compared with torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.artifacts import MODEL, BatchRange, Recipe
from gpusq_deploy.compile.export_check import check_export
from gpusq_deploy.compile.rewrite_selection import select_rewrites
from gpusq_deploy.engines import Target
from gpusq_deploy.frontend import MODELS_OWN, Checkpoint, Names, drop_weights, export_float_model, release_weights
from gpusq_deploy.graph import FASTER, SIMPLE, GraphLayer, heard, release_graph, run_passes, save_scratch
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
        difference: Largest difference from torch, relative.
        notes: Which rewrites were applied, for the plan.
    """

    checkpoint: Checkpoint
    model: ir.Model
    file: Path
    difference: float
    notes: tuple[str, ...] = ()

    def for_recipe(self, recipe: Recipe) -> MergedGraph:
        """The graph with the projections merged that a recipe decides alike, and the 2:4 state that it expects."""
        record = self.checkpoint.sparsity
        stored = graph_sparsity(self.model, source=self.checkpoint.file, recipe=recipe, record=record)
        return merge_qkv(self.model, stored, recipe, record)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """How a float graph is made.

    Attributes:
        batch: Sizes that it takes.
        opset: Of ONNX.
        names: Of its inputs and outputs.
        probe: For `--rewrites measured`: what rewrites are compared by; None applies all.
    """

    batch: BatchRange
    opset: int
    names: Names = MODELS_OWN


def canonical_graph(checkpoint: Checkpoint, options: ExportOptions, reporter: Reporter) -> ir.Model:
    """Exported, its constants folded, and rewritten for speed: what is calibrated, by every command.

    Raises:
        GpusqError: The exporter refuses the model.
    """
    return run_passes(simple_graph(checkpoint, options, reporter), FASTER, after=heard("rewriting", FASTER, reporter))


def simple_graph(checkpoint: Checkpoint, options: ExportOptions, reporter: Reporter) -> ir.Model:
    """Exported, its constants folded."""
    reporter.say(f"exporting {checkpoint.arch} to ONNX opset {options.opset}")
    exported = export_float_model(
        checkpoint,
        batch=options.batch,
        opset=options.opset,
        names=options.names,
        progress=lambda done, total: reporter.progress("exporting", done, total),
    )
    return run_passes(exported, SIMPLE, after=heard("simplifying", SIMPLE, reporter))
