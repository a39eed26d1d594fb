"""Does the memory of calibration grow with the number of images? Peak resident memory over 16 and over 1,000 images.

Each count runs in a process of its own, with a calibrator that counts every tensor's values (the most memory that any
of them takes). The kernel's high-water mark is reset just before the pass over the data.

    python benchmarks/peers/calibration_memory.py --json benchmarks/results/calibration_memory.json
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_COUNTS = (16, 1000)
_ARCH = "timm:vit_tiny_patch16_224"
_ARGUMENTS = ("img_size=64", "patch_size=8", "embed_dim=128", "depth=4", "num_heads=2", "num_classes=64")
_SIDE = 96


def main() -> None:
    """Measure both counts several times in turn, and print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for count in _COUNTS:
            _write_images(Path(folder) / str(count), count)
        runs = {count: [_run(Path(folder) / str(count)) for _ in range(options.runs)] for count in _COUNTS}
    few, many = (float(np.median([run["peak_kib"] for run in runs[count]])) for count in _COUNTS)
    result = {
        "what": f"peak resident memory of one pass of {_ARCH} {' '.join(_ARGUMENTS)}, calibrator mse for every tensor",
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "runs": {str(count): runs[count] for count in _COUNTS},
        "peak_ratio_of_medians": many / few,
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{_COUNTS[0]} images: {few / 1024:.1f} MiB; {_COUNTS[1]} images: {many / 1024:.1f} MiB; {many / few:.4f} times"
    )
    sys.exit(0 if abs(many / few - 1) <= 0.05 else 1)


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(count):
        pixels = random.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04d}.png")


def _run(folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _measure(folder: Path) -> dict[str, Any]:
    from gpusq_deploy.artifacts import BatchRange, Calibrator
    from gpusq_deploy.calibration import Observing, open_source
    from gpusq_deploy.calibration.observe import collect_ranges
    from gpusq_deploy.engines import open_onnx
    from gpusq_deploy.frontend import (
        arch_from_text,
        export_float_model,
        load_checkpoint,
        module_from_arch,
        save_checkpoint,
    )
    from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
    from gpusq_deploy.graph import run_passes, weighted_layers
    from gpusq_deploy.graph.passes.clean import Clean

    arch = arch_from_text(_ARCH, _ARGUMENTS)
    module = module_from_arch(arch)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.pt"
        save_checkpoint(path, module, arch=arch, preprocessing=preprocessing_of(arch, module))
        checkpoint = load_checkpoint(path)
    batch = BatchRange(minimum=1, optimum=8, maximum=32)
    model = run_passes(export_float_model(checkpoint, batch=batch), [Clean()])
    layers = weighted_layers(model)
    source = open_source(str(folder), checkpoint.preprocessing)
    how = Observing(
        calibrators={layer.input: Calibrator(name="mse") for layer in layers},
        preprocessing=checkpoint.preprocessing,
        workers=2,
    )
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    table = collect_ranges(model, layers, source, open_model=functools.partial(open_onnx, threads=1), how=how)
    return {"images": table.images, "tensors": len(table.ranges), "before_kib": before, "peak_kib": _status("VmHWM")}


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


if __name__ == "__main__":
    main()
