"""What INT8 inside attentions costs and gains: SQNR on unseen images, and the kernels that TensorRT-RTX compiles.

    python benchmarks/peers/placements.py dino.pt --arch timm:vit_small_patch14_dinov2.lvd142m \
        --arch-arg img_size=224 --arch-arg num_classes=0 --arch-arg global_pool= \
        --calib photos/calib --unseen photos/unseen --json benchmarks/results/placements.json

The default recipe with each placement; FP16 remainder; an engine for the A100, compiled and not run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import onnx_ir as ir

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.calibration.choice import calibrators_for
from gpusq_deploy.calibration.sources import open_source
from gpusq_deploy.checkpoint.architecture import arch_from_text
from gpusq_deploy.checkpoint.checkpoint import load_checkpoint
from gpusq_deploy.compile import CANONICAL
from gpusq_deploy.engines.builder import build_engine
from gpusq_deploy.engines.configure import BuildSettings
from gpusq_deploy.engines.layers import totals
from gpusq_deploy.export.onnx_export import export_float_model
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import graph_weights, weighted_layers
from gpusq_deploy.passes.base import run_passes
from gpusq_deploy.passes.cast_remainder import CastRemainder
from gpusq_deploy.passes.quantize import Quantize
from gpusq_deploy.placing import place
from gpusq_deploy.plan import PlanRequest, layers_to_quantize, make_plan
from gpusq_deploy.quantisation import Ready, Wanted, make_ready, rounded_weights
from gpusq_deploy.ranges import Data
from gpusq_deploy.recipe import AttentionRule, Placement, Recipe, load_recipe
from gpusq_deploy.request import Reporter
from gpusq_deploy.sparsity import sparsity_report
from gpusq_deploy.steps import subject_of
from gpusq_deploy.targets import find_target
from gpusq_deploy.verify import verify

_BATCH = BatchRange(minimum=1, optimum=8, maximum=32)


def main() -> None:
    """Export, calibrate and smooth once; then place, quantise, verify and compile with each placement."""
    options = _options()
    arch = None if options.arch is None else arch_from_text(options.arch, options.arch_arg)
    checkpoint = load_checkpoint(options.model, arch=arch)
    model = run_passes(export_float_model(checkpoint, batch=_BATCH), CANONICAL)
    recipe, layers = load_recipe(None), weighted_layers(model)
    report = sparsity_report(graph_weights(model, layers), source=checkpoint.file, recipe=recipe, record=None)
    calibrate, unseen = (open_source(text, checkpoint.preprocessing) for text in (options.calib, options.unseen))
    data = Data(calibrate=calibrate, verify=unseen, held_out=True, real=True)
    wanted = layers_to_quantize(layers, recipe)
    how = Wanted(layers=wanted, recipe=recipe, calibrators=calibrators_for(wanted, recipe), remainder="fp16")
    quiet = Reporter(say=_ignore, progress=_ignore)
    ready = make_ready(model, how, data, subject_of(checkpoint), quiet)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        float_file, built_file = Path(folder) / "float.onnx", Path(folder) / "built.onnx"
        save_model(model, float_file)
        for placement in get_args(Placement):
            placed = _with_placement(recipe, placement)
            found, placements = place(ready, placed, data, subject_of(checkpoint), quiet)
            asked = PlanRequest(recipe=placed, int8=True, sparse=False, remainder="fp16")
            plan = make_plan(found.layers, asked, table=found.table, sparsity=report, placements=placements)
            quantize = Quantize(plan, rounded_weights(found, plan, placed))
            save_model(_built(found, quantize), built_file)
            result = verify(float_file, built_file, unseen, held_out=True)
            row = {
                "placement": placement,
                "sqnr_db": result.sqnr_db,
                "median_sqnr_db": result.median_sqnr_db,
                "cosine": result.cosine,
                **_compiled(built_file),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.json:
        content = {
            "what": f"{checkpoint.arch}, recipe {recipe.name}, FP16 remainder; engine for a100, dynamic batch",
            "calibrated_on": len(calibrate),
            "verified_on": len(unseen),
            "rows": rows,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def _ignore(*_said: object) -> None:
    """Results go to stdout alone."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--arch")
    parser.add_argument("--arch-arg", action="append", default=[])
    parser.add_argument("--calib", required=True)
    parser.add_argument("--unseen", required=True)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _with_placement(recipe: Recipe, placement: Placement) -> Recipe:
    rule = AttentionRule(placement=placement, accept_loss=placement == "full", reason="measured")
    return msgspec.structs.replace(recipe, attention=rule)


def _built(ready: Ready, quantize: Quantize) -> ir.Model:
    return run_passes(ready.model, [quantize, CastRemainder("fp16")])


def _compiled(path: Path) -> Mapping[str, Any]:
    counted = totals(build_engine(path, find_target("a100"), BuildSettings(batch=_BATCH)).layers)
    return {"kernels": counted.kernels, "gemms": counted.gemms, "attention_fused": counted.attention_fused}


if __name__ == "__main__":
    main()
