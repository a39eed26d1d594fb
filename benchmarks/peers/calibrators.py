"""What each calibrator costs in accuracy: SQNR of the Q/DQ graph on images that calibration hasn't seen.

    python benchmarks/peers/calibrators.py dino.pt --arch timm:vit_small_patch14_dinov2.lvd142m \
        --arch-arg img_size=224 --arch-arg num_classes=0 --arch-arg global_pool= \
        --calib photos/calib --unseen photos/unseen --json benchmarks/results/calibrators.json

Every layer of the recipe plain_wi8_ai8 gets the calibrator; what isn't quantised stays FP32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from gpusq_deploy.artifacts import BatchRange, Calibrator, load_recipe
from gpusq_deploy.benchmarks.peers.quantizer import Quantizer
from gpusq_deploy.calibration import open_source
from gpusq_deploy.frontend import arch_from_text, export_float_model, load_checkpoint
from gpusq_deploy.graph import CANONICAL, run_passes

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
    recipe = load_recipe(Path("plain_wi8_ai8"))
    calibrate, unseen = (open_source(text, checkpoint.preprocessing) for text in (options.calib, options.unseen))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for calibrator in _CALIBRATORS:
            quantizer = Quantizer(model=model, samples=calibrate, float_type="fp32", usual=calibrator)
            request = quantizer.request(recipe)
            start = time.perf_counter()
            quantizer.observe(request)
            seconds = time.perf_counter() - start
            result = quantizer.compared(quantizer.quantized(recipe), Path(folder) / "built.onnx", unseen)
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
