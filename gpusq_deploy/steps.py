"""The steps of a compilation that need more than one room; `compile` has their order."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts.calibration import CalibrationTable
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.plan import Plan
from gpusq_deploy.artifacts.receipt import Verification
from gpusq_deploy.artifacts.sparsity import SparsityReport
from gpusq_deploy.bundle import MODEL
from gpusq_deploy.calibration.observe import collect_ranges, table_from_recorded
from gpusq_deploy.calibration.sources import RANDOM, DataSource, open_source
from gpusq_deploy.checkpoint.checkpoint import Checkpoint
from gpusq_deploy.checkpoint.tensors import array_from_tensor
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.export.onnx_export import example_input, reference_outputs
from gpusq_deploy.graph.layers import GraphLayer, graph_weights, weighted_layers
from gpusq_deploy.recipe import Recipe
from gpusq_deploy.request import BuildRequest, Reporter
from gpusq_deploy.sparsity import sparsity_report
from gpusq_deploy.verify import require_same, split_source, verify


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Samples to calibrate on and to verify on; `held_out` says that the two are apart."""

    calibrate: DataSource
    verify: DataSource
    held_out: bool


def repair_command(request: BuildRequest) -> str:
    """The command that makes a dense checkpoint 2:4."""
    words = ["gpusq-compress", str(request.model)]
    if request.arch is not None:
        prefix = "" if request.arch.source == "factory" else f"{request.arch.source}:"
        words += ["--arch", f"{prefix}{request.arch.name}"]
        for name, value in request.arch.arguments.items():
            words += ["--arch-arg", f"{name}={value}"]
    words += ["--data", "FOLDER", "--out", f"{request.model.stem}-24.pt"]
    return shlex.join(words)


def find_data(request: BuildRequest, checkpoint: Checkpoint) -> Data:
    """Where ranges and verification samples come from.

    Raises:
        GpusqError: INT8 has neither recorded ranges nor data, or the data can't be opened.
    """
    if request.calib is not None:
        calibrate, apart, held_out = split_source(open_source(request.calib, checkpoint.preprocessing))
        return Data(calibrate=calibrate, verify=apart, held_out=held_out)
    if request.int8 and not checkpoint.ranges:
        raise GpusqError(
            "INT8 needs activation ranges: the checkpoint records none, and there is no calibration data",
            place=str(request.model),
            hint="add --calib FOLDER with a few dozen typical images (--calib random exercises the pipeline only)",
        )
    noise = open_source(RANDOM, checkpoint.preprocessing)
    return Data(calibrate=noise, verify=noise, held_out=False)


def check_export(checkpoint: Checkpoint, model: Path, batch: BatchRange, reporter: Reporter) -> float:
    """Run torch and the exported graph on one input; the largest relative difference.

    The batch differs from the one that was traced, where the range allows it, so that a batch baked in would show.

    Raises:
        GpusqError: They disagree.
    """
    feed = array_from_tensor(example_input(checkpoint, min(max(batch.minimum, 3), batch.maximum)))
    session = open_onnx(model)
    try:
        answers = list(session.run({session.inputs[0].name: feed}).values())
    finally:
        session.close()
    references = reference_outputs(checkpoint, feed)
    place = str(checkpoint.arch)
    difference = max(require_same(ref, got, place=place) for ref, got in zip(references, answers, strict=True))
    reporter.say(f"the exported graph agrees with torch to {difference:.1e} (relative)")
    return difference


def find_ranges(
    model: ir.Model, layers: Sequence[GraphLayer], data: Data, checkpoint: Checkpoint, reporter: Reporter
) -> CalibrationTable:
    """Ranges that the checkpoint records; where it records none, those of the calibration data."""
    if checkpoint.ranges:
        reporter.say(f"using the {len(checkpoint.ranges)} ranges that the checkpoint records")
        return table_from_recorded(checkpoint.ranges, layers, source=checkpoint.file, known=weighted_layers(model))
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


def sparsity_kept(built: ir.Model, stored: SparsityReport, recipe: Recipe) -> SparsityReport:
    """The 2:4 state of the weights that will run, with the checkpoint's expectations.

    Raises:
        AssertionError: A pass broke what was valid in the checkpoint: our bug.
    """
    before = {state.layer: state for state in stored.layers}
    weights = graph_weights(built, weighted_layers(built))
    after = sparsity_report(weights, source=MODEL, recipe=recipe, record=None).layers
    lost = [state.layer for state in after if before[state.layer].valid and not state.valid]
    if lost:
        raise AssertionError(f"the passes broke 2:4 in {', '.join(lost)}")
    expected = (
        msgspec.structs.replace(state, expected=before[state.layer].expected, reason=before[state.layer].reason)
        for state in after
    )
    return SparsityReport(source=MODEL, layers=tuple(expected))


def verify_built(
    float_model: Path, built_model: Path, data: Data, plan: Plan, reporter: Reporter
) -> Verification | None:
    """Compare the built graph with the float graph; None, and said so, where the CPU can't run it."""
    if plan.remainder == "bf16":
        reporter.say("not verified: ONNX Runtime's CPU provider has no BF16 kernels")
        return None
    reporter.say(f"verifying against the float graph on {len(data.verify)} samples")
    result = verify(float_model, built_model, data.verify, held_out=data.held_out)
    reporter.say(f"SQNR {result.sqnr_db:.1f} dB, cosine {result.cosine:.5f}: {result.note}")
    return result
