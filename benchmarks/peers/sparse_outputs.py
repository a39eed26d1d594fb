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

from gpusq_deploy.artifacts import BatchRange, QuantPlan, load_recipe
from gpusq_deploy.benchmarks.peers.quantizer import Quantized, Quantizer, ignore
from gpusq_deploy.calibration import DataSource, open_source
from gpusq_deploy.engines import BuildSettings, build_engine, find_target, totals
from gpusq_deploy.frontend import arch_from_text, export_float_model, load_checkpoint
from gpusq_deploy.graph import CANONICAL, run_passes
from gpusq_deploy.quantize import Int8OutputRequest
from gpusq_deploy.sparsity import Pruning, prune_checkpoint

_BATCH = BatchRange(minimum=1, optimum=8, maximum=32)
_LEAST_DB = (float("inf"), 36.0, 33.0, 30.0, 27.0, 0.0)


def main() -> None:
    """Prune, export and calibrate once; then choose, quantise, verify and compile with each threshold."""
    options = _options()
    arch = None if options.arch is None else arch_from_text(options.arch, options.arch_arg)
    recipe = load_recipe(None)
    checkpoint = load_checkpoint(options.model, arch=arch)
    checkpoint = prune_checkpoint(checkpoint, recipe, Pruning(method="magnitude", permute=False), None, ignore)
    model = run_passes(export_float_model(checkpoint, batch=_BATCH), CANONICAL)
    calibrate, unseen = (open_source(text, checkpoint.preprocessing) for text in (options.calib, options.unseen))
    quantizer = Quantizer(model=model, samples=calibrate, record=checkpoint.sparsity)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for least in _LEAST_DB:
            built = quantizer.quantized(recipe, Int8OutputRequest(least_db=least))
            row = {
                "least_db": least if least < 1e9 else None,
                **_chosen(built.plan),
                **_measured(quantizer, built, Path(folder) / "built.onnx", unseen),
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


def _measured(quantizer: Quantizer, built: Quantized, file: Path, unseen: DataSource) -> dict[str, Any]:
    result = quantizer.compared(built, file, unseen)
    layers = build_engine(file, find_target("a100"), BuildSettings(batch=_BATCH, sparse=True)).layers
    return {
        "sqnr_db": result.sqnr_db,
        "median_sqnr_db": result.median_sqnr_db,
        "kernels": totals(layers).kernels,
        "int8_written": sum(layer.kind == "gemm" and layer.outputs[0].dtype == "Int8" for layer in layers),
    }


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
