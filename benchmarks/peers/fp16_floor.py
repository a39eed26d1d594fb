"""How far a fake-quantised model is from itself when FP16 rounds what its quantisers read, and nothing else.

    PYTHONPATH=tests/support python -m benchmarks.peers.fp16_floor --json benchmarks/results/fp16_floor.json

Files that producers' libraries made (tests/support/producers.py) are run with their recorded quantisers in torch, in
float32; then again with each quantiser's input rounded to FP16, and with its scale rounded too, as a graph stores it.
No FP16 graph of other kernels can be expected to be nearer. Seeded noise that no quantiser was calibrated on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import producers
import torch

from gpusq_deploy.frontend import array_from_tensor, load_checkpoint, named_modules, symmetric_quantizer
from gpusq_deploy.numerics import sqnr_db, top1_agreement

_FILES = ("modelopt_wide.pt", "modelopt_trained.pt", "pt2e_x86_wider.pt2", "modelopt_fp8.pt")
_FIXTURES = Path(__file__).resolve().parents[2] / "tests" / "fixtures"
_SAMPLES = 512


def main() -> None:
    """Measure all files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {
        "what": f"SQNR, dB, and top-1 agreement of a fake-quantised model to itself, on {_SAMPLES} samples of noise",
        **{name: _floor(_FIXTURES / name) for name in _FILES},
    }
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _floor(path: Path) -> dict[str, dict[str, float]]:
    images = torch.randn(_SAMPLES, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    exact = _answers(path, images, inputs=False, scales=False)
    kinds = {"inputs": (True, False), "scales": (False, True), "both": (True, True)}
    found: dict[str, dict[str, float]] = {}
    for name, (inputs, scales) in kinds.items():
        rounded = _answers(path, images, inputs=inputs, scales=scales)
        found[f"{name} in FP16"] = {
            "sqnr_db": round(float(sqnr_db(exact, rounded)), 1),
            "top1_agreement": round(top1_agreement(exact, rounded), 3),
        }
    return found


def _answers(path: Path, images: torch.Tensor, *, inputs: bool, scales: bool) -> Any:
    checkpoint = load_checkpoint(path, arch=producers.WIDER)
    record = checkpoint.quantizers
    for name, module in named_modules(checkpoint.module):
        trained = record.trained(name, checkpoint.ranges)
        if trained is None:
            continue
        grid, untyped = record.grids[name], module
        weight: Any = grid.quantized(untyped.get_parameter("weight"))
        untyped.register_parameter("weight", torch.nn.Parameter(weight, requires_grad=False))
        quantizer = record.inputs.get(name, symmetric_quantizer(checkpoint.ranges[name], trained[0]))
        if scales:
            quantizer = quantizer._replace(scale=float(torch.tensor(quantizer.scale).half()))
        untyped.register_forward_pre_hook(_hook(quantizer, inputs=inputs))
    return array_from_tensor(producers.answers(checkpoint.module, images))


def _hook(quantizer: Any, *, inputs: bool) -> Any:
    def hook(_module: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        values = given[0].half().float() if inputs else given[0]
        return (quantizer.quantized(values), *given[1:])

    return hook


if __name__ == "__main__":
    main()
