"""What INT8 does to a detector: a small DETR, trained here to find scanned digits in a scene, in each shipped recipe.

    python benchmarks/peers/detection.py --out detection-out --json benchmarks/results/detection.json

No trained DETR is at hand, and SQNR of random weights says little. So transformers' DetrForObjectDetection, made small,
is trained on scenes of one to three of scikit-learn's digits, of any size and place, on noise; scenes are drawn anew
for each step. In 12,000 steps it learns to find digits and not yet to tell which they are, so what is judged is
finding: a digit of a held-out scene is found if a box whose "no object" has less than half of the probability overlaps
it by half (intersection over union). Engines are compiled and not run.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import numpy.typing as npt
import torch
from sklearn.datasets import load_digits
from torchvision.ops import box_convert, box_iou

from gpusq_deploy.artifacts import ArchSpec
from gpusq_deploy.benchmarks.peers.families import built, shipped_recipe
from gpusq_deploy.bundle import read_bundle
from gpusq_deploy.engines import open_onnx
from gpusq_deploy.frontend import load_checkpoint, module_from_arch, save_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.numerics import sqnr_db

HEIGHT, WIDTH, QUERIES, CLASSES = 64, 64, 6, 10
STEPS, BATCH, LEARNING_RATE = 12000, 16, 5e-4
CALIBRATION, HELD_OUT = 128, 512
_CONFIG = {
    "model_type": "detr",
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
    "dropout": 0.0,
    "auxiliary_loss": True,
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "layer_type": "basic",
        "out_features": ["stage2"],
    },
}
ARCH = ArchSpec(
    source="transformers",
    name="DetrForObjectDetection",
    arguments={"config": json.dumps(_CONFIG), "input_size": [HEIGHT, WIDTH]},
)
RECIPES = ("static_wi8_ai8", "plain_wi8_ai8", "mixed_wi8_ai8", "static_wf8_af8", "weightonly_wi4_b32")

Array = npt.NDArray[np.float32]


class Scene(NamedTuple):
    """An image, normalised, and its digits: classes and boxes as centre and size, in shares of the image."""

    image: Array
    classes: npt.NDArray[np.int64]
    boxes: Array


def main() -> None:
    """Train what isn't there, then build with every recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    checkpoint = options.out / f"detr-{options.steps}.pt"
    if not checkpoint.exists():
        train(checkpoint, options.steps)
    np.save(options.out / "calib.npy", np.stack([scene.image for scene in scenes(CALIBRATION, seed=1, held_out=False)]))
    rows: list[dict[str, Any]] = []
    for name in RECIPES:
        rows.append({"recipe": name, **measured(options.out, checkpoint, name)})
        print(json.dumps(rows[-1]), flush=True)
    if options.json:
        what = "a small DETR, trained on scenes of scanned digits; held-out scenes; engines compiled, not run"
        text = json.dumps({"what": what, "arch": str(ARCH), "steps": options.steps, "rows": rows}, indent=2)
        options.json.write_text(text + "\n", "utf-8")


def scenes(count: int, *, seed: int, held_out: bool) -> list[Scene]:
    """Scenes of every fifth digit, or of the others."""
    return list(_draw(count, np.random.default_rng(seed), held_out=held_out))


@functools.cache
def _digits() -> Any:
    untyped: Any = load_digits  # scikit-learn doesn't annotate it
    return untyped()


def _draw(count: int, random: np.random.Generator, *, held_out: bool) -> Iterator[Scene]:
    known = _digits()
    chosen = [index for index in range(len(known.images)) if (index % 5 == 0) == held_out]
    for _ in range(count):
        canvas = random.normal(0.0, 0.1, (HEIGHT, WIDTH)).astype(np.float32) - 0.5
        classes, boxes = list[int](), list[tuple[int, int, int]]()
        for _ in range(int(random.integers(1, 4))):
            index, size = chosen[int(random.integers(len(chosen)))], int(random.integers(2, 5)) * 8
            top, left = int(random.integers(0, HEIGHT - size + 1)), int(random.integers(0, WIDTH - size + 1))
            if any(
                abs(top + size / 2 - y - s / 2) < (size + s) / 2 and abs(left + size / 2 - x - s / 2) < (size + s) / 2
                for y, x, s in boxes
            ):
                continue
            canvas[top : top + size, left : left + size] += np.kron(
                known.images[index] / 8.0, np.ones((size // 8, size // 8))
            )
            classes.append(int(known.target[index]))
            boxes.append((top, left, size))
        found = [((x + s / 2) / WIDTH, (y + s / 2) / HEIGHT, s / WIDTH, s / HEIGHT) for y, x, s in boxes]
        yield Scene(np.repeat(canvas[None], 3, 0), np.array(classes), np.array(found, np.float32))


def train(target: Path, steps: int) -> None:
    """With DETR's own loss, a one-cycle schedule, and scenes that are drawn anew."""
    torch.manual_seed(0)
    module: Any = module_from_arch(ARCH).train()
    parent: Any = type(module).__mro__[1]  # transformers' class, whose forward takes labels
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    random, losses = np.random.default_rng(0), list[float]()
    for step in range(1, steps + 1):
        batch = list(_draw(BATCH, random, held_out=False))
        labels = [
            {"class_labels": torch.from_numpy(scene.classes), "boxes": torch.from_numpy(scene.boxes)} for scene in batch
        ]
        images = torch.from_numpy(np.stack([scene.image for scene in batch]))
        loss: Any = parent.forward(module, pixel_values=images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
        optimizer.step()
        schedule.step()
        value: torch.Tensor = loss
        losses.append(float(value.detach()))
        if step % 200 == 0:
            print(f"step {step} of {steps}: training loss {np.mean(losses[-200:]):.3f}", flush=True)
    save_checkpoint(target, module.eval(), arch=ARCH, preprocessing=preprocessing_of(ARCH, module))


def measured(out: Path, checkpoint: Path, recipe: str) -> dict[str, Any]:
    """One build, and its model on held-out scenes beside the float one."""
    bundle = built(out, checkpoint, shipped_recipe(recipe), out / "calib.npy")
    held_out = scenes(HELD_OUT, seed=2, held_out=True)
    images = np.stack([scene.image for scene in held_out])
    module: Any = load_checkpoint(checkpoint).module
    with torch.no_grad():
        parts = [module(torch.from_numpy(images[at : at + 32])) for at in range(0, len(images), 32)]
    wanted = [np.concatenate([part[index].numpy() for part in parts]) for index in range(2)]
    session = open_onnx(bundle / "model.onnx", optimize=False)
    answers = [list(session.run({"input": images[at : at + 32]}).values()) for at in range(0, len(images), 32)]
    session.close()
    got = [np.concatenate([part[index] for part in answers]) for index in range(2)]
    found = read_bundle(bundle)
    linear = [layer for layer in found.plan.layers if layer.kind == "linear"]
    return {
        "logits_db": sqnr_db(wanted[0], got[0]),
        "boxes_db": sqnr_db(wanted[1], got[1]),
        **judged(got[0], got[1], held_out),
        **{f"float_{what}": value for what, value in judged(wanted[0], wanted[1], held_out).items()},
        "scenes": len(held_out),
        "quantised_linears": sum(layer.weight is not None for layer in linear),
        "linears": len(linear),
        "kernels": found.receipt.engines[0].totals.kernels,
        "model_bytes": (bundle / "model.onnx").stat().st_size,
    }


def judged(logits: Array, boxes: Array, held_out: list[Scene]) -> dict[str, float]:
    """The share of digits that are found, the mean overlap of those, and boxes for each digit."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    nothing = shifted[..., -1] / shifted.sum(-1)
    best = list[float]()
    for scene, chances, box in zip(held_out, nothing, boxes, strict=True):
        kept = box[chances < 0.5]
        best += _overlaps(scene.boxes, kept).tolist() if len(kept) else [0.0] * len(scene.boxes)
    overlaps = [overlap for overlap in best if overlap >= 0.5]
    return {
        "found": len(overlaps) / len(best),
        "overlap": float(np.mean(overlaps)) if overlaps else 0.0,
        "boxes_per_digit": float(np.count_nonzero(nothing < 0.5) / len(best)),
    }


def _overlaps(digits: Array, boxes: Array) -> Array:
    """Of each digit [N, 4], the largest intersection over union with a box [M, 4]; both as centre and size."""
    one, other = (box_convert(torch.from_numpy(each), "cxcywh", "xyxy") for each in (digits, boxes))
    untyped: Any = box_iou  # torchvision ships no types
    overlaps: torch.Tensor = untyped(one, other)
    return np.asarray(overlaps.amax(1), np.float32)


if __name__ == "__main__":
    main()
