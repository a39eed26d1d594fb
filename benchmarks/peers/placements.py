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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec

from gpusq_deploy.artifacts import (
    FP8_RECIPE,
    INT4_RECIPE,
    AttentionRule,
    BatchRange,
    Placement,
    Recipe,
    ResidualInputs,
    ResidualRule,
    load_recipe,
)
from gpusq_deploy.benchmarks.peers.quantizer import Quantizer
from gpusq_deploy.calibration import open_source
from gpusq_deploy.engines import BuildSettings, build_engine, find_target, totals
from gpusq_deploy.frontend import arch_from_text, export_float_model, load_checkpoint
from gpusq_deploy.graph import CANONICAL, run_passes

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
    """One exported model and its data."""

    def __init__(self, options: argparse.Namespace) -> None:
        arch = None if options.arch is None else arch_from_text(options.arch, options.arch_arg)
        self.checkpoint = load_checkpoint(options.model, arch=arch)
        self.calib, self.unseen = (
            open_source(text, self.checkpoint.preprocessing) for text in (options.calib, options.unseen)
        )
        model = run_passes(export_float_model(self.checkpoint, batch=_BATCH, opset=21), CANONICAL)
        self.quantizer = Quantizer(model=model, samples=self.calib)

    def row(self, case: Case, folder: Path) -> dict[str, Any]:
        """Quantise, verify and compile."""
        file = folder / "built.onnx"
        result = self.quantizer.compared(self.quantizer.quantized(case.recipe), file, self.unseen)
        engine = build_engine(file, find_target(case.target), BuildSettings(batch=_BATCH))
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
            "model_bytes": file.stat().st_size,
            "plan_bytes": len(engine.engine_bytes),
        }


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
