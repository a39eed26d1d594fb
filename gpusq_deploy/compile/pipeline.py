"""From a checkpoint or an ONNX file to a bundle: the only place that knows the order of the stages.

    open → export → observe → decide → rewrite → verify → engines → write

Each takes values and returns one that can be kept: a second recipe starts from the same float graph and observations.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gpusq_deploy.artifacts import (
    CALIBRATION,
    MODEL,
    PLAN,
    RECEIPT,
    Receipt,
    TaskAccuracy,
    digest_of_file,
)
from gpusq_deploy.bundle import Bundle, new_bundle, read_bundle, require_place, seal, write_value
from gpusq_deploy.compile.accuracy_gate import producer_shortfalls, refuse, shortfalls, task_shortfalls
from gpusq_deploy.compile.compare_expected import compare_expected
from gpusq_deploy.compile.compare_graphs import Pair
from gpusq_deploy.compile.cost_estimate import estimating, with_estimates
from gpusq_deploy.compile.decisions import Decisions, decide_build
from gpusq_deploy.compile.engine_stage import EngineRequest, build_engines
from gpusq_deploy.compile.float_graph import FloatGraph, export_graph
from gpusq_deploy.compile.inputs import Opened, fitted_batch, open_inputs
from gpusq_deploy.compile.manifest import BuildFacts, make_manifest
from gpusq_deploy.compile.observe_stage import Observed, observe_graph
from gpusq_deploy.compile.recorded import recorded_recipe
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.compile.rewrite_stage import rewrite
from gpusq_deploy.compile.target_checks import expressible_recipe
from gpusq_deploy.compile.verify import verify_built
from gpusq_deploy.graph import PassLog, give_back, map_model, save_scratch, scratch_folder
from gpusq_deploy.progress import Reporter

# The task's measure of the model as given and of a built graph, by its file: rooms below know how.
Judge = Callable[[Path], TaskAccuracy]


def compile_checkpoint(request: BuildRequest, reporter: Reporter, judge: Judge | None = None) -> Bundle:
    """Load, check, export, observe, decide, rewrite, verify, build, and write the bundle whole.

    Args:
        request: What is asked.
        reporter: Hears how it goes.
        judge: Measures the built graph, before engines are built of it; None: nobody does.

    Raises:
        GpusqError: Anything that the user can mend; nothing is left behind, but for the evidence of a verification
            that doesn't reach what was asked of it.
    """
    recipe = expressible_recipe(request)
    require_place(request.out, force=request.force)
    log = PassLog(request.dump_passes)
    opened = open_inputs(request, recipe, reporter)
    recipe, request = recorded_recipe(recipe, opened.checkpoint), fitted_batch(request, opened.checkpoint)
    with scratch_folder() as scratch:
        graph = export_graph(request, opened.checkpoint, Path(scratch), reporter, log)
        observed = observe_graph(graph, request, recipe, opened.data, reporter)
        return build_bundle(request, opened, graph, observed, reporter, judge)


def build_bundle(
    request: BuildRequest,
    opened: Opened,
    graph: FloatGraph,
    observed: Observed,
    reporter: Reporter,
    judge: Judge | None = None,
) -> Bundle:
    """The stages after observation: decide, rewrite, verify, build the engines, and write the bundle whole.

    Args:
        request: What is asked; its recipe may be another one than what was observed was needed for.
        opened: The checkpoint and the data.
        graph: The float graph.
        observed: Answers what the request's recipe needs to see; see `observe_graph`.
        reporter: Hears how it goes.
        judge: See `compile_checkpoint`.

    Raises:
        GpusqError: See `compile_checkpoint`.
    """
    with new_bundle(request.out, force=request.force) as folder:
        decisions = decide_build(request, observed, opened.data, reporter, graph.log)
        sparsity = rewrite(decisions, request, folder, reporter, graph.log)
        give_back()
        wanted = EngineRequest(
            folder=folder,
            name=request.out.name,
            plan=decisions.plan,
            sparsity=sparsity,
            batch=request.batch,
            targets=request.targets,
            reporter=reporter,
            options=request.engine,
        )
        pair = Pair(reference=_reference(graph, observed), built=folder / MODEL, moved=decisions.inputs.moved)
        receipt = _receipt(request, opened, pair, wanted, observed, judge)
        _write(folder, decisions, receipt)
        synthetic = decisions.inputs.table is not None and decisions.inputs.table.synthetic
        facts = BuildFacts(sparsity, graph.difference, synthetic=synthetic)
        manifest = make_manifest(request, observed.recipe, opened.checkpoint, map_model(folder / MODEL), facts)
        seal(folder, manifest)
        if receipt.shortfalls:
            refuse(folder, request, receipt.shortfalls)
    return read_bundle(request.out)


def _receipt(
    request: BuildRequest,
    opened: Opened,
    pair: Pair,
    wanted: EngineRequest,
    observed: Observed,
    judge: Judge | None,
) -> Receipt:
    """Verify the graph, build its engines where it reaches what was asked, and tell of both."""
    reporter, plan = wanted.reporter, wanted.plan
    with estimating(wanted, observed.graph.model) as estimate:
        verification = verify_built(pair, opened.data, plan, reporter, reference=opened.reference)
        producer = compare_expected(pair.built, opened.expected, plan, reporter)
        missed = (*shortfalls(verification, request), *producer_shortfalls(producer, request))
        # What is refused already needs no look at every labelled image.
        accuracy = None if judge is None or missed else judge(pair.built)
        missed = (*missed, *task_shortfalls(accuracy))
        engines, skipped = build_engines(replace(wanted, targets=()) if missed else wanted)
        estimated = estimate(engines)
        return Receipt(
            model_digest=digest_of_file(pair.built),
            verification=verification,
            engines=engines,
            skipped=skipped,
            shortfalls=missed,
            cost=estimated.cost,
            pruning=opened.pruning,
            producer=producer,
            accuracy=accuracy,
            works=estimated.works,
        )


def _reference(graph: FloatGraph, observed: Observed) -> Path:
    """The float graph that the built one is held against: with merged projections, so that layer meets layer."""
    if not observed.graph.chosen:
        return graph.file
    file = Path(tempfile.mkdtemp(dir=graph.file.parent)) / MODEL
    save_scratch(observed.graph.model, file)
    return file


def _write(folder: Path, decisions: Decisions, receipt: Receipt) -> None:
    write_value(folder, PLAN, with_estimates(decisions.plan, receipt.cost))
    write_value(folder, RECEIPT, receipt)
    if decisions.inputs.table is not None:
        write_value(folder, CALIBRATION, decisions.inputs.table)
