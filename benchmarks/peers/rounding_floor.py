"""How far a fake-quantised model is from itself when one of its tensors moves by less than a float32 rounding.

    PYTHONPATH=tests/support python benchmarks/peers/rounding_floor.py --json benchmarks/results/rounding_floor.json

A code that flips moves its activation by a whole step, and what follows amplifies that. No graph of other kernels can
be nearer to the model that a producer ran than that model is to itself: this is the most that a comparison can show.
Every Linear and the patch embedding is INT8 by amax.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import dinov2
import timm
import torch

from gpusq_deploy.artifacts import Preprocessing, load_recipe
from gpusq_deploy.benchmarks.peers.photographs import crops, photographs
from gpusq_deploy.numerics import sqnr_db
from gpusq_deploy.sparsity.training.qat import fake_quantized, int8_layers, observed_scales

_NUDGES = (1e-7, 1e-6, 1e-5)
_PIXELS = Preprocessing(
    channels=3,
    height=224,
    width=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bicubic",
    origin="timm",
)


def main() -> None:
    """Measure both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    images = torch.from_numpy(crops(photographs(()), _PIXELS, 16, least=0.5))
    real = timm.create_model("vit_small_patch14_dinov2.lvd142m", img_size=224, num_classes=0, global_pool="").eval()
    real.load_state_dict(dinov2.state_dict())
    torch.manual_seed(0)
    random = timm.create_model("vit_tiny_patch16_224").eval()
    found = {
        "what": "SQNR, dB, of a fake-quantised model to itself, its position embedding nudged by these shares",
        "vit_small_patch14_dinov2.lvd142m": _floor(real, images),
        "vit_tiny_patch16_224, random weights": _floor(random, images),
    }
    print(json.dumps(found, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _floor(module: torch.nn.Module, images: torch.Tensor) -> dict[str, float]:
    calibrators, _ = int8_layers(module, load_recipe(None))
    positions = module.get_parameter("pos_embed")
    still, generator = positions.detach().clone(), torch.Generator().manual_seed(0)
    found: dict[str, float] = {}
    with fake_quantized(module, observed_scales(module, calibrators, [images[:8]])), torch.no_grad():
        reference = module(images[8:]).numpy()
        for nudge in _NUDGES:
            positions.copy_(still * (1 + nudge * torch.randn(still.shape, generator=generator)))
            found[f"{nudge:g}"] = round(sqnr_db(reference, module(images[8:]).numpy()), 1)
        positions.copy_(still)
    return found


if __name__ == "__main__":
    main()
