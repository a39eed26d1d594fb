"""What INT8 beyond Linear layers, FP8 and INT4 weights cost: SQNR on unseen images, kernels, sizes.

    python benchmarks/peers/placements.py dino.pt --arch timm:vit_small_patch14_dinov2.lvd142m \
        --arch-arg img_size=224 --arch-arg num_classes=0 --arch-arg global_pool= \
        --calib photos/calib --unseen photos/unseen --json benchmarks/results/placements.json

The default recipe with each placement in attentions and residual adds, then recipes of other precisions; FP16
remainder; engines for the A100 (FP8: GeForce RTX 40), compiled and not run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import msgspec
from gpusq_deploy.quantize.smooth_and_range import QuantRequest

from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.recipe import (
    FP8_RECIPE,
    INT4_RECIPE,
    AttentionRule,
    Placement,
    Recipe,
    ResidualInputs,
    ResidualRule,
    Rule,
    load_recipe,
)
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
from gpusq_deploy.quantize.planning import PlanRequest, layers_to_quantize, make_plan
from gpusq_deploy.quantize.prepare import PlanInputs, fitted, observe_sites, plan_inputs
from gpusq_deploy.sparsity.graph_check import graph_sparsity

_BATCH = BatchRange(minimum=1, optimum=8, maximum=32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One row: what it is called, its recipe, the GPU of its engine."""

    name: str
    recipe: Recipe
    target: str = "a100"


def cases() -> Iterator[Case]:
    """The default recipe and what can be placed beside it; FP8; INT4 by block and by rounding."""
    usual = load_recipe(None)
    for placement in get_args(Placement):
        rule = AttentionRule(placement=placement, accept_loss=placement == "full", reason="measured")
        yield Case(name=placement, recipe=msgspec.structs.replace(usual, attention=rule))
    for inputs in get_args(ResidualInputs):
        residual = ResidualRule(inputs=inputs, accept_loss=True, reason="measured")
        yield Case(name=f"residual, {inputs}", recipe=msgspec.structs.replace(usual, residual=residual))
    yield Case(name=FP8_RECIPE, recipe=load_recipe(Path(FP8_RECIPE)), target="rtx40")
    weights = load_recipe(Path(INT4_RECIPE))
    for block in (128, 64, 32):
        for rounding in ("nearest", "second-order"):
            rules = [
                msgspec.structs.replace(rule, block=block, rounding=rounding, correct_bias=rounding != "nearest")
                if rule.precision == "int4"
                else rule
                for rule in weights.rules
            ]
            recipe = msgspec.structs.replace(weights, rules=tuple(rules))
            yield Case(name=f"INT4 weights, blocks of {block}, {rounding}", recipe=recipe)


class Bench:
    """One exported model and its data; readies the graph once for each set of rules."""

    def __init__(self, options: argparse.Namespace) -> None:
        arch = None if options.arch is None else arch_from_text(options.arch, options.arch_arg)
        self.checkpoint = load_checkpoint(options.model, arch=arch)
        self.model = run_passes(export_float_model(self.checkpoint, batch=_BATCH, opset=21), CANONICAL)
        self.layers = weighted_layers(self.model)
        self.calib, self.unseen = (
            open_source(text, self.checkpoint.preprocessing) for text in (options.calib, options.unseen)
        )
        self.data = CalibrationInputs(calibrate=self.calib, verify=self.unseen, held_out=True, real=True)
        self.quiet = Reporter(say=_ignore, progress=_ignore)
        self._ready: dict[tuple[Rule, ...], PlanInputs] = {}

    def row(self, case: Case, folder: Path) -> dict[str, Any]:
        """Place, quantise, verify and compile."""
        float_file, built_file = folder / "float.onnx", folder / "built.onnx"
        save_model(self.model, float_file)
        prepared = self._placed(case.recipe)
        report = graph_sparsity(self.model, source=self.checkpoint.file, recipe=case.recipe)
        asked = PlanRequest(recipe=case.recipe, quantize=True, sparse=False, float_type="fp16")
        plan = make_plan(prepared.layers, asked, table=prepared.table, sparsity=report, placements=prepared.placements)
        rounded = fitted(prepared, plan, case.recipe, self.data, self.quiet)
        save_model(run_passes(prepared.model, [Quantize(plan, rounded), CastToFloatType("fp16")]), built_file)
        result = verify(Pair(reference=float_file, built=built_file), self.unseen, held_out=True)
        engine = build_engine(built_file, find_target(case.target), BuildSettings(batch=_BATCH))
        counted = totals(engine.layers)
        return {
            "placement": case.name,
            "sqnr_db": result.sqnr_db,
            "median_sqnr_db": result.median_sqnr_db,
            "cosine": result.cosine,
            "fused_sqnr_db": result.fused_sqnr_db,
            "target": case.target,
            "kernels": counted.kernels,
            "gemms": counted.gemms,
            "attention_fused": counted.attention_fused,
            "model_bytes": built_file.stat().st_size,
            "plan_bytes": len(engine.engine_bytes),
        }

    def _placed(self, recipe: Recipe) -> PlanInputs:
        subject = facts_of(self.checkpoint)
        if recipe.rules not in self._ready:
            wanted = layers_to_quantize(self.layers, recipe)
            how = QuantRequest(
                layers=wanted,
                recipe=msgspec.structs.replace(recipe, attention=None, residual=None),
                calibrators=calibrators_for(wanted, recipe),
                float_type="fp16",
            )
            self._ready[recipe.rules] = plan_inputs(self.model, self.layers, how, self.data, subject, self.quiet)
        prepared = self._ready[recipe.rules]
        if prepared.ready is None:
            return prepared
        ready, placements = observe_sites(prepared.ready, recipe, self.data, subject, self.quiet)
        return replace(prepared, table=ready.table, placements=placements)


def main() -> None:
    """Measure every case; print each row, and write them all."""
    options = _options()
    bench = Bench(options)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            rows.append(bench.row(case, Path(folder)))
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        content = {
            "what": f"{bench.checkpoint.arch}, FP16 remainder, opset 21; dynamic batch; compiled, not run",
            "calibrated_on": len(bench.calib),
            "verified_on": len(bench.unseen),
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


if __name__ == "__main__":
    main()
