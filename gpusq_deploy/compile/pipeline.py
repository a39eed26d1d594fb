"""From a checkpoint to a bundle: the only place that knows the order."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts import (
    CALIBRATION,
    MANIFEST,
    MODEL,
    PLAN,
    RECEIPT,
    BatchRange,
    CalibrationTable,
    PruningLoss,
    QuantPlan,
    Receipt,
    Recipe,
    Reference,
    SparsityReport,
    digest_of_file,
)
from gpusq_deploy.bundle import Bundle, files_in, new_bundle, read_bundle, require_place, write_value
from gpusq_deploy.calibration import CalibrationInputs, SimpleForm, calibrators_for, preprocessing_of_arrays
from gpusq_deploy.compile.accuracy_gate import refuse, require_checkable, shortfalls
from gpusq_deploy.compile.compare_graphs import Pair
from gpusq_deploy.compile.cost_estimate import estimate_cost, with_estimates
from gpusq_deploy.compile.engine_stage import EngineRequest, build_engines
from gpusq_deploy.compile.export_check import check_export
from gpusq_deploy.compile.inputs import find_data, open_samples, repair_command, say_remarks, subject_of
from gpusq_deploy.compile.manifest import make_manifest
from gpusq_deploy.compile.prune_stage import prune_as_asked
from gpusq_deploy.compile.qkv_merge import MergedGraph, merge_qkv
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.compile.rewrite_selection import Speedup, best_form, find_yardstick, require_parsable
from gpusq_deploy.compile.target_checks import expressible_recipe, require_possible
from gpusq_deploy.compile.verify import verify_built
from gpusq_deploy.frontend import (
    MODELS_OWN,
    Checkpoint,
    Names,
    drop_weights,
    export_float_model,
    layer_weights,
    load_checkpoint,
    release_weights,
)
from gpusq_deploy.graph import (
    FASTER,
    SIMPLE,
    CastToFloatType,
    Moved,
    PassLog,
    Quantize,
    give_back,
    heard,
    keep_fp32,
    map_model,
    release_graph,
    run_passes,
    save_model,
    save_scratch,
    scratch_folder,
    weighted_layers,
)
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize import (
    Int8Outputs,
    PlanRequest,
    QuantRequest,
    decide,
    find_fp16_overflow,
    layers_to_quantize,
    note_others,
    plan_inputs,
)
from gpusq_deploy.sparsity import (
    compress_weights,
    graph_sparsity,
    require_known_layers,
    require_sparse,
    sparsity_kept,
    sparsity_report,
)


def compile_checkpoint(request: BuildRequest, reporter: Reporter) -> Bundle:
    """Load, check, export, calibrate, decide, rewrite, verify, build, and write the bundle whole.

    Raises:
        GpusqError: Anything that the user can mend; nothing is left behind, but for the evidence of a verification
            that doesn't reach what was asked of it.
    """
    recipe = expressible_recipe(request)
    require_place(request.out, force=request.force)

    log = PassLog(request.dump_passes)
    opened = _open_inputs(request, recipe, reporter)
    exported = _export(request, recipe, opened.checkpoint, reporter, log)
    packed = exported.packed

    with new_bundle(request.out, force=request.force) as folder, scratch_folder() as scratch:
        float_file, built_file = Path(scratch) / MODEL, folder / MODEL
        save_scratch(packed.model, float_file, lambda done, total: reporter.progress("writing", done, total))
        difference = check_export(opened.checkpoint, float_file, request.batch, reporter)
        drop_weights(opened.checkpoint.module)  # from here on they are the graph's

        plan, table, kept, moved = _rewrite(exported, opened, request, recipe, folder, reporter)
        give_back()

        pair = Pair(reference=float_file, built=built_file, moved=moved)
        verification = verify_built(pair, opened.data, plan, reporter, reference=opened.reference)
        missed = shortfalls(verification, request)
        engines_asked = EngineRequest(
            folder=folder,
            name=request.out.name,
            plan=plan,
            sparsity=kept,
            batch=request.batch,
            targets=() if missed else request.targets,
            reporter=reporter,
            options=request.engine,
        )
        engines, skipped = build_engines(engines_asked)
        receipt = Receipt(
            model_digest=digest_of_file(built_file),
            verification=verification,
            engines=engines,
            skipped=skipped,
            shortfalls=missed,
            cost=estimate_cost(engines_asked, engines, packed.model),
            pruning=opened.pruning,
        )
        write_value(folder, PLAN, with_estimates(plan, receipt.cost))
        write_value(folder, RECEIPT, receipt)
        if table is not None:
            write_value(folder, CALIBRATION, table)
        manifest = make_manifest(
            request,
            opened.checkpoint,
            map_model(built_file),
            sparsity=kept,
            export_difference=difference,
            synthetic=table is not None and table.synthetic,
        )
        write_value(folder, MANIFEST, msgspec.structs.replace(manifest, files=files_in(folder)))
        if missed:
            refuse(folder, request, missed)
    return read_bundle(request.out)


class Opened(NamedTuple):
    """What a build starts from; `pruning` is what that cost, None where nothing was pruned."""

    checkpoint: Checkpoint
    data: CalibrationInputs
    pruning: PruningLoss | None

    @property
    def reference(self) -> Reference:
        """What the exported float graph is."""
        return "float" if self.pruning is None else "pruned float"


class Rewritten(NamedTuple):
    """What is left of a graph that was rewritten and saved: nothing of its weights; `moved` is what smoothing did."""

    plan: QuantPlan
    table: CalibrationTable | None
    kept: SparsityReport
    moved: Mapping[str, Moved | None]


def read_checkpoint(request: BuildRequest, reporter: Reporter) -> Checkpoint:
    """The checkpoint as it is stored; what was changed or left out while reading is said."""
    reporter.say(f"loading {request.model}")
    checkpoint = load_checkpoint(
        request.model,
        arch=request.arch,
        allow_pickle=request.allow_pickle,
        state_dict=request.state_dict,
        undeclared=functools.partial(preprocessing_of_arrays, request.calib),
    )
    return say_remarks(checkpoint, request, reporter)


def require_stored(checkpoint: Checkpoint, request: BuildRequest, recipe: Recipe, *, sparse: bool) -> None:
    """Refuse a record of layers that the checkpoint hasn't got and, with `sparse`, weights that aren't 2:4.

    Raises:
        GpusqError: Names the layers.
    """
    report = sparsity_report(
        layer_weights(checkpoint.module), source=checkpoint.file, recipe=recipe, record=checkpoint.sparsity
    )
    require_known_layers(checkpoint.sparsity, report)
    if sparse:
        require_sparse(report, command=repair_command(request))


def _open_inputs(request: BuildRequest, recipe: Recipe, reporter: Reporter) -> Opened:
    """The checkpoint, pruned if that was asked for and 2:4 where that was, and the data to calibrate and verify on."""
    checkpoint = read_checkpoint(request, reporter)
    samples = open_samples(request, checkpoint)
    checkpoint, loss = prune_as_asked(checkpoint, request, recipe, samples, reporter)
    require_stored(checkpoint, request, recipe, sparse=request.sparse)
    return Opened(checkpoint, find_data(request, checkpoint, samples, recipe), loss)


def export_simple(
    checkpoint: Checkpoint,
    batch: BatchRange,
    opset: int,
    reporter: Reporter,
    names: Names = MODELS_OWN,
    log: PassLog | None = None,
) -> ir.Model:
    """The float graph in its simple form: what every command calibrates, whatever a build makes of it then."""
    reporter.say(f"exporting {checkpoint.arch} to ONNX opset {opset}")
    exported = export_float_model(
        checkpoint,
        batch=batch,
        opset=opset,
        names=names,
        progress=lambda done, total: reporter.progress("exporting", done, total),
    )
    return run_passes(
        exported, SIMPLE, after=heard("simplifying", SIMPLE, reporter, (log or PassLog()).after(exported))
    )


def float_graphs(
    request: BuildRequest, checkpoint: Checkpoint, reporter: Reporter, log: PassLog
) -> tuple[ir.Model, ir.Model]:
    """The float graph in its simple form, and with all rewrites for speed.

    Raises:
        GpusqError: The exporter refuses the model, or its outputs can't be held against the limits that were asked.
    """
    names = Names(input=request.input_name, outputs=request.output_names)
    simple = export_simple(checkpoint, request.batch, request.opset, reporter, names, log)
    model = run_passes(simple, FASTER, after=heard("rewriting", FASTER, reporter, log.after(simple)))
    require_checkable(request, model)
    return simple, model


class Exported(NamedTuple):
    """A float graph in its simple form, which is calibrated, and in the form that is built; who hears its passes."""

    simple: ir.Model
    packed: MergedGraph
    log: PassLog


def _export(
    request: BuildRequest, recipe: Recipe, checkpoint: Checkpoint, reporter: Reporter, log: PassLog
) -> Exported:
    """The float graph in its best form, with those projections packed that the recipe and 2:4 allow to be."""
    simple, model = float_graphs(request, checkpoint, reporter, log)
    stored = graph_sparsity(model, source=checkpoint.file, recipe=recipe, record=checkpoint.sparsity)
    if request.sparse:
        require_sparse(stored, command=repair_command(request))
    # Nobody reads weights while forms are compared, and a compiler needs room.
    release_weights(checkpoint.module)
    release_graph(simple.graph)
    packed = best_form(
        Speedup(before=simple, after=model, rewrites=FASTER, stored=stored),
        lambda form: merge_qkv(form, stored, recipe, checkpoint.sparsity, log),
        find_yardstick(request),
        reporter,
        log=log,
        require=lambda form: require_parsable(form, request),
    )
    return Exported(simple=simple, packed=packed, log=log)


def _rewrite(
    exported: Exported, opened: Opened, request: BuildRequest, recipe: Recipe, folder: Path, reporter: Reporter
) -> Rewritten:
    """Calibrate, decide and rewrite the float graph; what is built goes into the bundle's folder."""
    packed, log = exported.packed, exported.log
    model, data, layers = packed.model, opened.data, weighted_layers(packed.model)
    wanted = layers_to_quantize(layers, recipe) if request.int8 else ()
    how = QuantRequest(
        layers=wanted,
        recipe=recipe,
        calibrators=calibrators_for(wanted, recipe, usual=request.usual_calibrator),
        remainder=request.remainder,
        outputs=Int8Outputs(wish=request.sparse_outputs, sparsity=packed.stored),
        simple=SimpleForm(model=exported.simple, parts=packed.parts),
        after=log.after(model),
    )
    prepared = plan_inputs(model, layers, how, data, subject_of(opened.checkpoint), reporter)
    asked = PlanRequest(recipe=recipe, int8=request.int8, sparse=request.sparse, remainder=request.remainder)
    wide = find_fp16_overflow(prepared.model, prepared.table, data, asked.remainder, reporter)
    plan, rounded = decide(prepared, asked, packed.stored, wide, data, reporter)
    plan = note_others(packed.noted(plan), prepared.model)
    require_possible(plan, request.targets)
    steps = (Quantize(plan, rounded), keep_fp32(plan), CastToFloatType(plan.remainder))
    built = run_passes(prepared.model, steps, after=log.after(prepared.model))
    kept = sparsity_kept(built, packed.stored, recipe)
    if request.pack:
        compress_weights(built, kept, folder, reporter)
    save_model(built, folder / MODEL)
    return Rewritten(plan, prepared.table, kept, {} if prepared.ready is None else prepared.ready.moved)
