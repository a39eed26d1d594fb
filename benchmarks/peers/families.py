"""What the shipped recipes do to each family of models that can be had trained: SQNR, accuracy, kernels.

    python benchmarks/peers/families.py --out families-out --json benchmarks/results/families.json

SQNR of random weights says little, so a small DeiT and a small Swin are trained here, on the digits of
`benchmarks/demo/digits.py`, on the same images and in the same way; two minutes each on two cores. Every recipe is then
calibrated on the training images and measured on the held-out fifth. A variant leaves the layers of one pattern in FP16
and tells what they cost. Engines are compiled and not run.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import numpy.typing as npt
import torch

import gpusq_deploy
from gpusq_deploy.benchmarks.demo.digits import (
    BATCH,
    LEARNING_RATE,
    PREPROCESSING,
    augmented,
    digits_of,
    images_in,
    read_images,
    torch_logits,
    training_step,
    write_data,
)
from gpusq_deploy.frontend import module_from_arch
from gpusq_deploy.numerics import sqnr_db

EPOCHS = 20
SMALL = {"img_size": 64, "in_chans": 1, "num_classes": 10}
FAMILIES = {
    "deit": gpusq_deploy.ArchSpec(
        source="timm",
        name="deit_tiny_patch16_224",
        arguments={**SMALL, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 2},
    ),
    "swin": gpusq_deploy.ArchSpec(
        source="timm",
        name="swin_tiny_patch4_window7_224",
        arguments={
            **SMALL,
            "patch_size": 4,
            "window_size": 4,
            "embed_dim": 64,
            "depths": [2, 2, 2],
            "num_heads": [2, 4, 8],
        },
    ),
}
# What may be special about a family, by the pattern of its modules.
KEPT = {"deit": ("blocks.3.*", "*mlp.fc2"), "swin": ("*downsample.reduction", "*mlp.fc2")}
RECIPES = ("static_wi8_ai8", "plain_wi8_ai8", "static_wf8_af8", "weightonly_wi4_b32")


def main() -> None:
    """Train what isn't there, then build with every recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    if not (options.out / "data").exists():
        write_data(options.out / "data")
    rows: list[dict[str, Any]] = []
    for family, arch in FAMILIES.items():
        checkpoint = options.out / f"{family}.pt"
        if not checkpoint.exists():
            train(arch, options.out / "data" / "train", checkpoint)
        for name, recipe in recipes(family):
            found = measured(options.out, checkpoint, recipe)
            rows.append({"family": family, "arch": str(arch), "recipe": name, **found})
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        what = "trained on scanned digits; SQNR of logits and accuracy on the held-out fifth; engines compiled, not run"
        options.json.write_text(json.dumps({"what": what, "epochs": EPOCHS, "rows": rows}, indent=2) + "\n")


def shipped_recipe(name: str) -> str:
    """Its TOML."""
    return (resources.files("gpusq_deploy.calibration") / "recipes" / f"{name}.toml").read_text("utf-8")


def recipes(family: str) -> Iterator[tuple[str, str]]:
    """The shipped ones, and the default with what `KEPT` names left in FP16: names and TOML."""
    shipped = {name: shipped_recipe(name) for name in RECIPES}
    yield from shipped.items()
    for pattern in KEPT[family]:
        kept = f'[[rule]]\nmatch = "{pattern}"\nprecision = "float"\nreason = "to see what it costs"\n\n[[rule]]'
        yield f"{RECIPES[0]}, {pattern} in FP16", shipped[RECIPES[0]].replace("[[rule]]", kept, 1)


def train(arch: gpusq_deploy.ArchSpec, data: Path, target: Path) -> None:
    """As the demo trains its model, and as long."""
    torch.manual_seed(0)
    files = images_in(data)
    images, labels = torch.from_numpy(read_images(files)), torch.from_numpy(digits_of(files))
    module = module_from_arch(arch).train()
    steps = -(-len(images) // BATCH) * EPOCHS
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.15)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images))
        batches = (order[start : start + BATCH] for start in range(0, len(order), BATCH))
        losses = [training_step(module, augmented(images[some]), labels[some], optimizer, schedule) for some in batches]
        print(f"{arch.name}, epoch {epoch + 1} of {EPOCHS}: training loss {np.mean(losses):.3f}", flush=True)
    gpusq_deploy.save_checkpoint(target, module.eval(), arch=arch, preprocessing=PREPROCESSING)


def built(out: Path, checkpoint: Path, recipe: str, calib: Path) -> Path:
    """A bundle by a recipe's TOML, in FP16 for the rest; it replaces the last one."""
    file, bundle = out / "recipe.toml", out / "model.gpusq"
    file.write_text(recipe)
    gpusq_deploy.build(
        checkpoint,
        out=bundle,
        data=calib,
        precision="int8",
        targets=("rtx40",),
        recipe=file,
        opset=21,
        force=True,
    )
    return bundle


def measured(out: Path, checkpoint: Path, recipe: str) -> dict[str, Any]:
    """One build, and its model on the held-out images beside the float one."""
    bundle = built(out, checkpoint, recipe, out / "data" / "train")
    files = images_in(out / "data" / "heldout")
    labels = digits_of(files)
    reference: npt.NDArray[np.float32] = torch_logits(checkpoint)(files)
    opened = gpusq_deploy.open_bundle(bundle)
    with opened.session("onnxruntime") as session:
        (output,) = (spec.name for spec in session.outputs)
        got: npt.NDArray[np.float32] = session.run(files)[output]
    engine = opened.receipt.engines[0]
    return {
        "sqnr_db": sqnr_db(reference, got),
        "accuracy": _agreement(got, labels),
        "float_accuracy": _agreement(reference, labels),
        "images": len(labels),
        "kernels": engine.totals.kernels,
        "gemms": engine.totals.gemms,
        "attention_fused": engine.totals.attention_fused,
        "model_bytes": (bundle / "model.onnx").stat().st_size,
    }


def _agreement(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    return np.count_nonzero(logits.argmax(1) == labels) / len(labels)


if __name__ == "__main__":
    main()
