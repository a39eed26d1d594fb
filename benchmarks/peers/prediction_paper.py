"""What the predictor says of GPUSQ-ViT's own speed-ups, and against which baseline it comes nearest to them.

    python benchmarks/peers/prediction_paper.py --json benchmarks/results/prediction_paper.json

The paper gives INT4 with 2:4 on the A100 and the AGX Orin, by latency (batch 1) and by throughput (a large batch, taken
as 128 here), and neither milliseconds nor, in what of it could be read, the baseline. FP32 and TF32 are the FP16
kernels with twice the bytes at the rates of CUDA cores and of TF32 tensor cores; INT4 is INT8's with half of the
weights' bytes at twice the rate. Nothing of that was fitted to FP32, TF32 or INT4 measurements.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from gpusq_deploy.benchmarks.peers.prediction_shapes import Shape, works_of_shape
from gpusq_deploy.engines.prediction.constants import load_fitted
from gpusq_deploy.engines.prediction.devices import Device, find_device
from gpusq_deploy.engines.prediction.roofline import time_of
from gpusq_deploy.engines.prediction.work import Work

_BATCHES = {"latency": 1, "throughput": 128}
_BASES = ("fp32", "tf32", "fp16", "int8")
# As collected in notes on the paper, arXiv 2305.10727: INT4 with 2:4, latency and throughput.
_PAPER = {
    "a100": {
        "deit_tiny": (1.39, 3.43),
        "deit_small": (1.44, 3.37),
        "vit_base": (1.47, 3.35),
        "swin_base": (1.79, 3.29),
    },
    "agx-orin": {
        "deit_tiny": (1.57, 2.13),
        "deit_small": (1.65, 2.11),
        "vit_base": (1.62, 2.35),
        "swin_base": (1.69, 2.48),
    },
}
# Dense rates, 10^12 a second: FP32 CUDA cores and TF32 tensor cores (NVIDIA's data sheets; Orin's TF32: half of FP16).
_OTHER = {"a100": {"fp32": 19.5, "tf32": 156.0}, "agx-orin": {"fp32": 5.3, "tf32": 21.3}}


def main() -> None:
    """Print the ratios of each model, device and baseline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [_row(device, model, paper) for device, models in _PAPER.items() for model, paper in models.items()]
    found = {"what": "predicted speed-ups over each baseline, beside the paper's INT4 with 2:4", "rows": rows}
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def _row(name: str, model: str, paper: tuple[float, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"device": name, "model": model, "paper": dict(zip(_BATCHES, paper, strict=True))}
    for way, batch in _BATCHES.items():
        times = _times(find_device(name), model, batch)
        row[f"{way}_ms"] = {form: round(value, 3) for form, value in times.items()}
        for form in ("int4+2:4", "int8+2:4", "int8"):
            row[f"{way}_{form}_over"] = {base: round(times[base] / times[form], 2) for base in _BASES}
    return row


def _times(device: Device, model: str, batch: int) -> dict[str, float]:
    swin = model.startswith("swin")
    shape = Shape(
        model=model,
        resolution=384 if swin else 224,
        patch=4 if swin else 16,
        batch=batch,
        precision="fp16",
        software="tensorrt",
    )
    fp16, int8 = works_of_shape(shape), works_of_shape(replace(shape, precision="int8"))
    wide = [(times, _wide(work)) for times, work in fp16]
    return {
        "fp32": _ms(wide, _at(device, fp16=_OTHER[device.name]["fp32"])),
        "tf32": _ms(wide, _at(device, fp16=_OTHER[device.name]["tf32"])),
        "fp16": _ms(fp16, device),
        "int8": _ms(int8, device),
        "int8+2:4": _ms([(times, _sparse(work)) for times, work in int8], device),
        "int4+2:4": _ms(
            [(times, _narrow(_sparse(work))) for times, work in int8], _at(device, int8=2 * device.int8_tops)
        ),
    }


def _ms(works: list[tuple[int, Work]], device: Device) -> float:
    constants = load_fitted().constants
    return sum(times * time_of(work, device, constants).total for times, work in works) / 1e3


def _at(device: Device, *, fp16: float | None = None, int8: float | None = None) -> Device:
    return msgspec.structs.replace(device, fp16_tflops=fp16 or device.fp16_tflops, int8_tops=int8 or device.int8_tops)


def _wide(work: Work) -> Work:
    return replace(work, weight_bytes=2 * work.weight_bytes, moved_bytes=2 * work.moved_bytes)


def _sparse(work: Work) -> Work:
    return replace(work, sparse=work.role == "gemm" and work.precision == "int8")


def _narrow(work: Work) -> Work:
    return replace(work, weight_bytes=work.weight_bytes // 2) if work.sparse else work


if __name__ == "__main__":
    main()
