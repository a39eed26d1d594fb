"""What both stages leave of a SegFormer's mIoU: scenes made of photographs, three seeds, judged by gpusq-eval.

    python benchmarks/peers/scenes_training.py --json benchmarks/results/scenes_training.json

A scene is a piece of one photograph with rectangles and ellipses of others in it, and the class of a pixel is whose it
is. Scenes to train on are cut from every other strip of the photographs, those to judge on from the strips between, so
no pixel is in both. A dense SegFormer is trained by a loop of its own (cross entropy, AdamW), compressed by
`gpusq_deploy.compress`, and what is judged in INT8 is the `model.onnx` of each bundle in ONNX Runtime: by the ranges of
calibration (PTQ), and by those that training left (QAT). Seeds that the JSON file has already aren't run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

import gpusq_deploy
from gpusq_deploy.artifacts import ArchSpec, builtins_from_value
from gpusq_deploy.benchmarks.environment import read_environment
from gpusq_deploy.benchmarks.peers.photographs import photographs
from gpusq_deploy.frontend import module_from_arch, preprocessing_of

SIDE = 96
_SEEDS = 3
_TRAINED, _JUDGED = 600, 300
_DENSE_EPOCHS, _PRUNE_EPOCHS, _QAT_EPOCHS, _RATE, _BATCH = 30, 10, 3, 1e-3, 32
_GROUNDS = ("astronaut.png", "china.jpg", "ihc.png")
_CLASSES = ("chelsea.png", "coffee.png", "flower.jpg", "motorcycle_left.png")
_MODEL: dict[str, Any] = {
    "hidden_sizes": [32, 64, 96, 128],
    "depths": [1, 1, 2, 2],
    "num_attention_heads": [1, 2, 3, 4],
    "sr_ratios": [8, 4, 2, 1],
    "decoder_hidden_size": 64,
    "num_labels": 1 + len(_CLASSES),
    "input_size": [SIDE, SIDE],
}

Pixels = npt.NDArray[np.uint8]
Row = dict[str, Any]


def strips(names: Sequence[str], *, judged: bool) -> list[list[Pixels]]:
    """Of each photograph every other strip of SIDE rows, as RGB."""
    files = {path.name: path for path in photographs(())}
    found = list[list[Pixels]]()
    for name in names:
        with Image.open(files[name]) as image:
            pixels = np.asarray(image.convert("RGB"))
        tops = range(SIDE * int(judged), pixels.shape[0] - SIDE + 1, 2 * SIDE)
        found.append([pixels[top : top + SIDE] for top in tops])
    return found


def piece(photograph: Sequence[Pixels], height: int, width: int, rng: np.random.Generator) -> Pixels:
    """A random piece of a random strip."""
    strip = photograph[int(rng.integers(len(photograph)))]
    top = int(rng.integers(SIDE - height + 1))
    left = int(rng.integers(strip.shape[1] - width + 1))
    return strip[top : top + height, left : left + width]


def scene(
    grounds: Sequence[Sequence[Pixels]], objects: Sequence[Sequence[Pixels]], rng: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """Pixels and classes: one to four shapes of photographs on a piece of another; a pixel is of the last one on it."""
    pixels = piece(grounds[int(rng.integers(len(grounds)))], SIDE, SIDE, rng).copy()
    classes = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(int(rng.integers(1, 5))):
        label = int(rng.integers(len(objects)))
        height, width = (int(side) for side in rng.integers(20, 56, size=2))
        top, left = int(rng.integers(SIDE - height)), int(rng.integers(SIDE - width))
        rows, columns = np.mgrid[0:height, 0:width]
        inside = ((rows - height / 2) / (height / 2)) ** 2 + ((columns - width / 2) / (width / 2)) ** 2 <= 1
        shape = inside if rng.random() < 0.5 else np.ones_like(inside)
        place = (slice(top, top + height), slice(left, left + width))
        pixels[place][shape] = piece(objects[label], height, width, rng)[shape]
        classes[place][shape] = 1 + label
    return pixels, classes


def write_scenes(folder: Path, count: int, seed: int, *, judged: bool) -> Path:
    """A folder of `images` and `annotations`, as ADE20K's are laid out."""
    rng = np.random.default_rng((seed, int(judged)))
    grounds, objects = strips(_GROUNDS, judged=judged), strips(_CLASSES, judged=judged)
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        for name, pixels in zip(("images", "annotations"), scene(grounds, objects, rng), strict=True):
            Image.fromarray(pixels).save(folder / name / f"{index:04d}.png")
    return folder


def dense_model(scenes: Path, out: Path, seed: int) -> Path:
    """Train a SegFormer from random weights, and save it."""
    spec = ArchSpec(source="transformers", name="SegformerForSemanticSegmentation", arguments=_MODEL)
    torch.manual_seed(seed)
    module: Any = module_from_arch(spec)
    declared = preprocessing_of(spec, module)
    images = torch.stack([_read(path, declared) for path in sorted((scenes / "images").iterdir())])
    labels = torch.stack(
        [torch.from_numpy(np.array(Image.open(path))).long() for path in sorted((scenes / "annotations").iterdir())]
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=_RATE)
    steps = _DENSE_EPOCHS * -(-len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_RATE, total_steps=steps)
    module.train()
    for _ in range(_DENSE_EPOCHS):
        for some in torch.split(torch.randperm(len(images)), _BATCH):
            logits = functional.interpolate(module(images[some]), size=(SIDE, SIDE), mode="bilinear")
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(logits, labels[some]))
            optimizer.step()
            schedule.step()
    gpusq_deploy.save_checkpoint(out, module.eval(), arch=spec, preprocessing=declared)
    return out


def _read(path: Path, declared: Any) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(Image.open(path), np.float32)).movedim(2, 0) / 255
    return (pixels - torch.tensor(declared.mean)[:, None, None]) / torch.tensor(declared.std)[:, None, None]


def compressed(dense: Path, scenes: Path, out: Path, seed: int, **asked: Any) -> Path:
    """By gpusq-compress's Python API, at this script's rate."""
    gpusq_deploy.compress(
        dense, data=scenes, out=out, learning_rate=_RATE, batch_size=_BATCH, held_out=0.1, seed=seed, **asked
    )
    return out


def subjects(folder: Path, seed: int) -> dict[str, Path]:
    """All models of one seed, by what they are; the dense one is the first."""
    scenes = write_scenes(folder / "train", _TRAINED, seed, judged=False)
    dense = dense_model(scenes, folder / "dense.pt", seed)
    print(f"seed {seed}: dense, {time.process_time():.0f} CPU s", flush=True)
    pruned = compressed(dense, scenes, folder / "pruned.pt", seed, epochs=0)
    sparse = compressed(dense, scenes, folder / "sparse.pt", seed, epochs=_PRUNE_EPOCHS)
    print(f"seed {seed}: 2:4, {time.process_time():.0f} CPU s", flush=True)
    both = {"stage": "prune,qat", "epochs": (_PRUNE_EPOCHS, _QAT_EPOCHS)}
    trained = compressed(dense, scenes, folder / "qat.pt", seed, **both)
    return {
        "dense": dense,
        "2:4 by magnitude, not trained": pruned,
        "2:4": sparse,
        "2:4 INT8 by PTQ": _bundle(sparse, folder / "ptq", data=scenes / "images"),
        "2:4 INT8 by QAT": _bundle(trained, folder / "qat"),
    }


def _bundle(model: Path, out: Path, **asked: Any) -> Path:
    gpusq_deploy.build(model, out=out, precision="int8", sparse=True, targets=(), **asked)
    return out


def run_seed(seed: int, folder: Path) -> Row:
    """The mIoU of each model, and the interval of its difference from the dense one's."""
    began = time.process_time()
    models = subjects(folder, seed)
    judged = write_scenes(folder / "judged", _JUDGED, seed, judged=True)
    found = gpusq_deploy.evaluate(list(models.values()), data=judged, runtime="onnxruntime")
    scores = {name: subject.scores[0] for name, subject in zip(models, found.subjects, strict=True)}
    return {
        "seed": seed,
        "scores": {name: builtins_from_value(score) for name, score in scores.items()},
        "cpu_seconds": time.process_time() - began,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Mean mIoU over the seeds, the lowest and highest, and the difference from dense, in points."""
    yield "| SegFormer on scenes | mIoU, mean | lowest, highest | against dense, points |"
    yield "|---|---|---|---|"
    for name in rows[0]["scores"]:
        values = [row["scores"][name]["value"] for row in rows]
        lost = statistics.mean(row["scores"][name]["difference"] or 0.0 for row in rows)
        yield f"| {name} | {statistics.mean(values):.2%} | {min(values):.2%}, {max(values):.2%} | {100 * lost:+.2f} |"


def main() -> None:
    """Run the seeds that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=_SEEDS)
    asked = parser.parse_args()
    kept: Row = json.loads(asked.json.read_text()) if asked.json.exists() else {"seeds": []}
    for seed in range(asked.seeds):
        if seed not in [row["seed"] for row in kept["seeds"]]:
            with tempfile.TemporaryDirectory() as folder:
                kept["seeds"].append(run_seed(seed, Path(folder)))
            kept["environment"] = builtins_from_value(read_environment())
            asked.json.write_text(json.dumps(kept, indent=1) + "\n")
            print("\n".join(table(kept["seeds"])), flush=True)


if __name__ == "__main__":
    main()
