"""What INT8 outputs of sparse layers cost: SQNR on unseen images, by how much of each layer's signal must stay.

    python benchmarks/peers/sparse_outputs.py dino.pt --arch timm:vit_small_patch14_dinov2.lvd142m \
        --arch-arg img_size=224 --arch-arg num_classes=0 --arch-arg global_pool= \
        --calib photos/calib --unseen photos/unseen --json benchmarks/results/sparse_outputs.json

The checkpoint is pruned 2:4 by magnitude first, untrained: SQNR is against the pruned float graph, so it is what INT8
costs and not what pruning does. The default recipe; FP16 remainder; an engine for the A100, compiled and not run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from gpusq_deploy.quantize.smooth_and_range import QuantRequest, rounded_weights, smooth_and_observe

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.plan import QuantPlan
from gpusq_deploy.artifacts.recipe import load_recipe
from gpusq_deploy.calibration.calibrator_choice import calibrators_for
from gpusq_deploy.calibration.data import open_source
from gpusq_deploy.calibration.ranges import CalibrationInputs
from gpusq_deploy.compile.compare_graphs import Pair
from gpusq_deploy.compile.inputs import facts_of
from gpusq_deploy.compile.verify import verify
from gpusq_deploy.engines.builder import build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.layer_classes import totals
from gpusq_deploy.engines.targets import find_target
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint
from gpusq_deploy.frontend.export.onnx_export import export_float_model
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.cast_to_float_type import CastToFloatType
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize.int8_outputs import Int8Outputs
from gpusq_deploy.quantize.planning import PlanRequest, layers_to_quantize, make_plan
from gpusq_deploy.quantize.prepare import observe_outputs
from gpusq_deploy.quantize.sites import ActivationSites, Int8OutputRequest
from gpusq_deploy.sparsity.graph_check import graph_sparsity
from gpusq_deploy.sparsity.pruning.checkpoint import Pruning, prune_checkpoint

_BATCH = BatchRange(minimum=1, optimum=8, maximum=32)
_LEAST_DB = (float("inf"), 36.0, 33.0, 30.0, 27.0, 0.0)


def main() -> None:
    """Prune, export and calibrate once; then choose, quantise, verify and compile with each threshold."""
    options = _options()
    arch = None if options.arch is None else arch_from_text(options.arch, options.arch_arg)
    recipe, quiet = load_recipe(None), Reporter(say=_ignore, progress=_ignore)
    checkpoint = load_checkpoint(options.model, arch=arch)
    checkpoint = prune_checkpoint(checkpoint, recipe, Pruning(method="magnitude", permute=False), None, _ignore)
    model = run_passes(export_float_model(checkpoint, batch=_BATCH), CANONICAL)
    layers = weighted_layers(model)
    report = graph_sparsity(model, source=checkpoint.file, recipe=recipe, record=checkpoint.sparsity)
    calibrate, unseen = (open_source(text, checkpoint.preprocessing) for text in (options.calib, options.unseen))
    data = CalibrationInputs(calibrate=calibrate, verify=unseen, held_out=True, real=True)
    wanted = layers_to_quantize(layers, recipe)
    how = QuantRequest(layers=wanted, recipe=recipe, calibrators=calibrators_for(wanted, recipe), float_type="fp16")
    ready = smooth_and_observe(model, how, data, facts_of(checkpoint), quiet)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        float_file, built_file = Path(folder) / "float.onnx", Path(folder) / "built.onnx"
        save_model(model, float_file)
        for least in _LEAST_DB:
            outputs = Int8Outputs(wish=Int8OutputRequest(least_db=least), sparsity=report)
            found, chosen = observe_outputs(ready, recipe, outputs, data, facts_of(checkpoint), quiet)
            asked = PlanRequest(recipe=recipe, quantize=True, sparse=True, float_type="fp16")
            placements = ActivationSites(outputs=chosen)
            plan = make_plan(found.layers, asked, table=found.table, sparsity=report, placements=placements)
            quantize = Quantize(plan, rounded_weights(found, plan, recipe))
            save_model(run_passes(found.model, [quantize, CastToFloatType("fp16")]), built_file)
            row = {
                "least_db": least if least < 1e9 else None,
                **_chosen(plan),
                **_measured(float_file, built_file, unseen),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.json:
        content = {
            "what": f"{checkpoint.arch}, 2:4 by magnitude, recipe {recipe.name}; engine for a100, dynamic batch",
            "calibrated_on": len(calibrate),
            "verified_on": len(unseen),
            "rows": rows,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _chosen(plan: QuantPlan) -> dict[str, Any]:
    """How many layers write INT8, of how many that were asked, and their share of the weighted layers' FLOPs."""
    asked = [layer for layer in plan.layers if layer.output_reason is not None]
    chosen = [layer for layer in asked if layer.weight is not None and layer.weight.one_scale]
    share = sum(layer.macs for layer in chosen) / sum(layer.macs for layer in plan.layers)
    names = sorted({layer.layer.rpartition(".")[2] for layer in chosen})
    return {"asked": len(asked), "chosen": len(chosen), "flops_share": share, "kinds": names}


def _measured(float_file: Path, built_file: Path, unseen: Any) -> dict[str, Any]:
    result = verify(Pair(reference=float_file, built=built_file), unseen, held_out=True)
    layers = build_engine(built_file, find_target("a100"), BuildSettings(batch=_BATCH, sparse=True)).layers
    return {
        "sqnr_db": result.sqnr_db,
        "median_sqnr_db": result.median_sqnr_db,
        "kernels": totals(layers).kernels,
        "int8_written": sum(layer.kind == "gemm" and layer.outputs[0].dtype == "Int8" for layer in layers),
    }


def _ignore(*_said: object) -> None:
    """Results go to stdout alone."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--arch")
    parser.add_argument("--arch-arg", action="append", default=[])
    parser.add_argument("--calib", required=True)
    parser.add_argument("--unseen", required=True)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
