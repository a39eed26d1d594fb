"""Rewrite: the graph that is built, with Q/DQ, in the float type, in the bundle's folder."""

from __future__ import annotations

from pathlib import Path

from gpusq_deploy.artifacts import MODEL, SparsityReport
from gpusq_deploy.compile.decisions import Decisions
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.graph import CastToFloatType, PassLog, Quantize, keep_fp32, run_passes, save_model
from gpusq_deploy.progress import Reporter
from gpusq_deploy.sparsity import compress_weights, sparsity_kept


def rewrite(
    decisions: Decisions, request: BuildRequest, folder: Path, reporter: Reporter, log: PassLog
) -> SparsityReport:
    """Write the graph as decided; the 2:4 state of the weights that will run.

    Raises:
        GpusqError: The folder can't be written, or `pack` was asked and no INT8 weight is 2:4.
    """
    plan, model = decisions.plan, decisions.inputs.model
    steps = (Quantize(plan, decisions.rounded), keep_fp32(plan), CastToFloatType(plan.float_type))
    built = run_passes(model, steps, after=log.after(model))
    sparsity = sparsity_kept(built, decisions.stored, decisions.recipe)
    if request.pack:
        compress_weights(built, sparsity, folder, reporter)
    save_model(built, folder / MODEL)
    return sparsity
