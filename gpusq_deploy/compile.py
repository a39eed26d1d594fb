"""From a checkpoint to a bundle: the only place that knows the order."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.artifacts.base import digest_of_file
from gpusq_deploy.artifacts.calibration import CalibrationTable
from gpusq_deploy.artifacts.manifest import BatchRange, Manifest, ModelSource
from gpusq_deploy.artifacts.plan import FloatPrecision, Plan
from gpusq_deploy.artifacts.receipt import Receipt, Verification
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.build_engines import EngineRequest, build_engines, require_possible
from gpusq_deploy.bundle import (
    CALIBRATION,
    MANIFEST,
    MODEL,
    PLAN,
    RECEIPT,
    Bundle,
    damaged_files,
    files_in,
    new_bundle,
    read_bundle,
    require_place,
    write_value,
)
from gpusq_deploy.calibration.observe import collect_ranges, table_from_recorded
from gpusq_deploy.calibration.sources import RANDOM, DataSource, open_source
from gpusq_deploy.checkpoint.checkpoint import Checkpoint, load_checkpoint
from gpusq_deploy.checkpoint.tensors import array_from_tensor
from gpusq_deploy.checkpoint.weights import layer_weights
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.export.onnx_export import example_input, export_float_model, reference_outputs
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import GraphLayer, graph_weights, weighted_layers
from gpusq_deploy.manifest import installed_versions, now, shapes_of
from gpusq_deploy.passes.attention_scale import AttentionScale
from gpusq_deploy.passes.base import Pass, run_passes
from gpusq_deploy.passes.cast_remainder import CastRemainder
from gpusq_deploy.passes.clean import Clean
from gpusq_deploy.passes.fold_shapes import FoldShapes
from gpusq_deploy.passes.quantize import Quantize
from gpusq_deploy.plan import PlanRequest, layers_to_quantize, make_plan
from gpusq_deploy.recipe import load_recipe
from gpusq_deploy.sparsity import require_sparse, sparsity_report
from gpusq_deploy.targets import Target
from gpusq_deploy.verify import require_same, split_source, verify


# The form of a float graph that everything after relies on, and that TensorRT compiles to fewest kernels.
CANONICAL: tuple[Pass, ...] = (Clean(), FoldShapes(), AttentionScale())


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """Everything that gpusq-build was asked. `recipe` None is the default one; `calib` None means no data."""

    model: Path
    arch: ArchSpec | None
    int8: bool
    sparse: bool
    remainder: FloatPrecision
    recipe: Path | None
    calib: str | None
    targets: Sequence[Target]
    batch: BatchRange
    opset: int
    out: Path
    force: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Reporter:
    """Who hears what is going on: sentences, and progress as label, done, total."""

    say: Callable[[str], None]
    progress: Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Data:
    """Samples to calibrate on and to verify on; `recorded` is True where the checkpoint's own ranges are used."""

    calibrate: DataSource
    verify: DataSource
    held_out: bool
    recorded: bool


def compile_checkpoint(request: BuildRequest, reporter: Reporter) -> Bundle:
    """Load, check, export, calibrate, decide, rewrite, verify, build, and write the bundle whole.

    Raises:
        GpusqError: Anything that the user can mend; nothing is left behind.
    """
    require_place(request.out, force=request.force)
    recipe = load_recipe(request.recipe)
    asked = PlanRequest(recipe=recipe, int8=request.int8, sparse=request.sparse, remainder=request.remainder)

    reporter.say(f"loading {request.model}")
    checkpoint = load_checkpoint(request.model, arch=request.arch)
    stored = sparsity_report(
        layer_weights(checkpoint.module), source=checkpoint.file, recipe=recipe, record=checkpoint.sparsity
    )
    if request.sparse:
        require_sparse(stored, command=_repair_command(request))
    data = _data(request, checkpoint)

    reporter.say(f"exporting {checkpoint.arch} to ONNX opset {request.opset}")
    exported = export_float_model(checkpoint, batch=request.batch, opset=request.opset)
    model = run_passes(exported, CANONICAL)
    layers = weighted_layers(model)

    with new_bundle(request.out, force=request.force) as folder, tempfile.TemporaryDirectory() as scratch:
        float_model = Path(scratch) / MODEL
        save_model(model, float_model)
        difference = _check_export(checkpoint, float_model, request.batch)
        reporter.say(f"the exported graph agrees with torch to {difference:.1e} (relative)")

        table = _ranges(model, layers_to_quantize(layers, recipe), data, checkpoint, reporter) if request.int8 else None
        plan = make_plan(layers, asked, table=table, sparsity=stored)
        require_possible(plan, request.targets)
        built = run_passes(model, [Quantize(plan), CastRemainder(plan.remainder)])
        kept = _require_kept(built, stored, request)
        save_model(built, folder / MODEL)

        verification = _verified(float_model, folder / MODEL, data, plan, reporter)
        engines, skipped = build_engines(
            EngineRequest(
                folder=folder,
                name=request.out.name,
                plan=plan,
                sparsity=kept,
                batch=request.batch,
                targets=request.targets,
                say=reporter.say,
                progress=reporter.progress,
            )
        )
        receipt = Receipt(
            model_digest=digest_of_file(folder / MODEL), verification=verification, engines=engines, skipped=skipped
        )
        _describe(folder, plan, table, receipt)
        write_value(folder, MANIFEST, _manifest(request, checkpoint, built, kept, folder, difference))
    return read_bundle(request.out)


def extend_bundle(path: Path, targets: Sequence[Target], reporter: Reporter) -> Bundle:
    """Build further engines from a bundle that exists; the same model, a new receipt, replaced whole.

    Raises:
        GpusqError: The bundle is damaged, or an engine can't be built.
    """
    bundle = read_bundle(path)
    faults = list(damaged_files(path, bundle.manifest))
    if faults:
        raise GpusqError("; ".join(faults), place=str(path), hint="build the bundle again from its checkpoint")
    require_possible(bundle.plan, targets)
    with new_bundle(path, force=True) as folder:
        shutil.copytree(path, folder, dirs_exist_ok=True)
        (folder / MANIFEST).unlink()
        engines, skipped = build_engines(
            EngineRequest(
                folder=folder,
                name=path.name,
                plan=bundle.plan,
                sparsity=bundle.manifest.sparsity,
                batch=bundle.manifest.batch,
                targets=targets,
                say=reporter.say,
                progress=reporter.progress,
            )
        )
        fresh = {target.name for target in targets}
        receipt = msgspec.structs.replace(
            bundle.receipt,
            engines=(*(engine for engine in bundle.receipt.engines if engine.target not in fresh), *engines),
            skipped=(*(entry for entry in bundle.receipt.skipped if entry.target not in fresh), *skipped),
        )
        write_value(folder, RECEIPT, receipt)
        write_value(folder, MANIFEST, msgspec.structs.replace(bundle.manifest, files=files_in(folder)))
    return read_bundle(path)


def _repair_command(request: BuildRequest) -> str:
    arch = "" if request.arch is None else f" --arch {request.arch.source}:{request.arch.name}"
    return f"gpusq-compress {request.model}{arch} --data FOLDER --out {request.model.stem}-24.pt"


def _data(request: BuildRequest, checkpoint: Checkpoint) -> _Data:
    """Where ranges and verification samples come from; an error with a hint where INT8 has neither."""
    recorded = bool(checkpoint.ranges)
    if request.calib is not None:
        calibrate, apart, held_out = split_source(open_source(request.calib, checkpoint.preprocessing))
        return _Data(calibrate=calibrate, verify=apart, held_out=held_out, recorded=recorded)
    if request.int8 and not recorded:
        raise GpusqError(
            "INT8 needs activation ranges: the checkpoint records none, and there is no calibration data",
            place=str(request.model),
            hint="add --calib FOLDER with a few dozen typical images (--calib random exercises the pipeline only)",
        )
    noise = open_source(RANDOM, checkpoint.preprocessing)
    return _Data(calibrate=noise, verify=noise, held_out=False, recorded=recorded)


def _check_export(checkpoint: Checkpoint, float_model: Path, batch: BatchRange) -> float:
    # Another size than the exporter traced with, where the range allows one: a batch baked into the graph shows.
    size = min(max(batch.minimum, 3), batch.maximum)
    feed = array_from_tensor(example_input(checkpoint, size))
    session = open_onnx(float_model)
    try:
        answers = list(session.run({session.inputs[0].name: feed}).values())
    finally:
        session.close()
    references = reference_outputs(checkpoint, feed)
    return max(require_same(ref, got, place=str(checkpoint.arch)) for ref, got in zip(references, answers, strict=True))


def _ranges(
    model: ir.Model, layers: Sequence[GraphLayer], data: _Data, checkpoint: Checkpoint, reporter: Reporter
) -> CalibrationTable:
    if data.recorded:
        reporter.say(f"using the {len(checkpoint.ranges)} ranges that the checkpoint records")
        return table_from_recorded(checkpoint.ranges, layers, source=checkpoint.file)
    reporter.say(f"calibrating {len(layers)} layers on {len(data.calibrate)} samples of {data.calibrate.name}")
    table = collect_ranges(
        model,
        layers,
        data.calibrate,
        open_model=open_onnx,
        progress=lambda done, total: reporter.progress("calibrating", done, total),
    )
    for skipped in table.skipped:
        reporter.say(f"skipped: {skipped}")
    return table


def _require_kept(built: ir.Model, stored: SparsityReport, request: BuildRequest) -> SparsityReport:
    """The 2:4 state of the weights that will run: quantisation must not have broken what was valid."""
    expected = {state.layer: state for state in stored.layers}
    layers = weighted_layers(built)
    kept = sparsity_report(graph_weights(built, layers), source=MODEL, recipe=load_recipe(request.recipe), record=None)
    states = tuple(
        msgspec.structs.replace(state, expected=expected[state.layer].expected, reason=expected[state.layer].reason)
        for state in kept.layers
    )
    report = SparsityReport(source=MODEL, layers=states)
    lost = [state.layer for state in report.layers if expected[state.layer].valid and not state.valid]
    if lost:
        raise AssertionError(f"the passes broke 2:4 in {', '.join(lost)}")
    return report


def _verified(float_model: Path, built_model: Path, data: _Data, plan: Plan, reporter: Reporter) -> Verification | None:
    if plan.remainder == "bf16":
        reporter.say("not verified: ONNX Runtime's CPU provider has no BF16 kernels")
        return None
    session = open_onnx(float_model)
    classes = len(session.outputs[0].shape) == 2
    session.close()
    reporter.say(f"verifying against the float graph on {len(data.verify)} samples")
    result = verify(float_model, built_model, data.verify, held_out=data.held_out, classes=classes)
    reporter.say(f"SQNR {result.sqnr_db:.1f} dB, cosine {result.cosine:.5f}: {result.note}")
    return result


def _describe(folder: Path, plan: Plan, table: CalibrationTable | None, receipt: Receipt) -> None:
    write_value(folder, PLAN, plan)
    write_value(folder, RECEIPT, receipt)
    if table is not None:
        write_value(folder, CALIBRATION, table)


def _manifest(
    request: BuildRequest,
    checkpoint: Checkpoint,
    built: ir.Model,
    kept: SparsityReport,
    folder: Path,
    difference: float,
) -> Manifest:
    recorded = bool(checkpoint.ranges)
    return Manifest(
        created=now(),
        versions=installed_versions(),
        source=ModelSource(
            file=checkpoint.file, digest=checkpoint.digest, format=checkpoint.format, arch=checkpoint.arch
        ),
        preprocessing=checkpoint.preprocessing,
        recipe=load_recipe(request.recipe).name,
        options={
            "int8": str(request.int8).lower(),
            "sparse": str(request.sparse).lower(),
            "remainder": request.remainder,
            "calib": "recorded in the checkpoint" if recorded else request.calib or "none",
            "targets": ",".join(target.name for target in request.targets),
        },
        batch=request.batch,
        opset=request.opset,
        inputs=shapes_of(built.graph.inputs),
        outputs=shapes_of(built.graph.outputs),
        synthetic_calibration=request.int8 and not recorded and request.calib == RANDOM,
        sparsity=kept,
        files=files_in(folder),
        notes=(f"the exported float graph agrees with torch to {difference:.3g} (relative, largest element)",),
    )
