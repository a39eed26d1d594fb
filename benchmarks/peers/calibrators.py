"""What each calibrator costs in accuracy: SQNR of the Q/DQ graph on images that calibration hasn't seen.

    python benchmarks/peers/calibrators.py dino.pt --arch timm:vit_small_patch14_dinov2.lvd142m \
        --arch-arg img_size=224 --arch-arg num_classes=0 --arch-arg global_pool= \
        --calib photos/calib --unseen photos/unseen --json benchmarks/results/calibrators.json

Every layer of the recipe plain_wi8_ai8 gets the calibrator; what isn't quantised stays FP32.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from gpusq_deploy.artifacts.calibration import Calibrator
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.recipe import load_recipe
from gpusq_deploy.calibration.calibrator_choice import calibrators_for
from gpusq_deploy.calibration.data import open_source
from gpusq_deploy.calibration.observe import Observing, collect_ranges
from gpusq_deploy.compile.compare_graphs import Pair
from gpusq_deploy.compile.verify import verify
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.frontend.checkpoint.architecture import arch_from_text
from gpusq_deploy.frontend.checkpoint.load import load_checkpoint
from gpusq_deploy.frontend.export.onnx_export import export_float_model
from gpusq_deploy.graph.files import save_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.pipelines import CANONICAL
from gpusq_deploy.graph.passes.quantize import Quantize
from gpusq_deploy.numerics.threads import cpu_workers
from gpusq_deploy.quantize.planning import PlanRequest, layers_to_quantize, make_plan
from gpusq_deploy.sparsity.graph_check import graph_sparsity

_CALIBRATORS = (
    Calibrator(),
    Calibrator(name="percentile", percentile=99.99),
    Calibrator(name="percentile", percentile=99.999),
    Calibrator(name="entropy"),
    Calibrator(name="mse"),
    Calibrator(name="output-error"),
)


def main() -> None:
    """Export once; then calibrate, quantise and verify with each calibrator for every layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--arch")
    parser.add_argument("--arch-arg", action="append", default=[])
    parser.add_argument("--calib", required=True)
    parser.add_argument("--unseen", required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    arch = None if options.arch is None else arch_from_text(options.arch, options.arch_arg)
    checkpoint = load_checkpoint(options.model, arch=arch)
    batch = BatchRange(minimum=1, optimum=8, maximum=32)
    model = run_passes(export_float_model(checkpoint, batch=batch), CANONICAL)
    layers, recipe = weighted_layers(model), load_recipe(Path("plain_wi8_ai8"))
    report = graph_sparsity(model, source=checkpoint.file, recipe=recipe)
    wanted = layers_to_quantize(layers, recipe)
    asked = PlanRequest(recipe=recipe, quantize=True, sparse=False, float_type="fp32")
    calibrate, unseen = (open_source(text, checkpoint.preprocessing) for text in (options.calib, options.unseen))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        float_file, built_file = Path(folder) / "float.onnx", Path(folder) / "built.onnx"
        save_model(model, float_file)
        for calibrator in _CALIBRATORS:
            how = Observing(calibrators=calibrators_for(wanted, recipe, usual=calibrator), workers=cpu_workers())
            start = time.perf_counter()
            table = collect_ranges(
                model, wanted, calibrate, open_model=functools.partial(open_onnx, threads=1), how=how
            )
            seconds = time.perf_counter() - start
            plan = make_plan(layers, asked, table=table, sparsity=report)
            save_model(run_passes(model, [Quantize(plan)]), built_file)
            result = verify(Pair(reference=float_file, built=built_file), unseen, held_out=True)
            rows.append({"calibrator": str(calibrator), "sqnr_db": result.sqnr_db, "seconds": seconds})
            print(f"{calibrator!s:20} SQNR {result.sqnr_db:6.2f} dB, calibrated in {seconds:.1f} s", flush=True)
    if options.json:
        content = {
            "what": f"{checkpoint.arch}, recipe {recipe.name}, FP32 remainder",
            "calibrated_on": len(calibrate),
            "verified_on": len(unseen),
            "rows": rows,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
