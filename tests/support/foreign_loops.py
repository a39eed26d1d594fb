"""Tiny models of the transformers library, scenes of photographs, and loops over both without this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from skimage import data as photographs

from gpusq_deploy.artifacts.arch import ArchSpec
from gpusq_deploy.frontend.checkpoint.load import save_checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.checkpoint.transformers_models import module_from_transformers

SIDE = 64
library: Any = photographs  # untyped


def pieces(count: int, seed: int) -> list[npt.NDArray[np.uint8]]:
    """Pieces of photographs, of odd sizes."""
    rng = np.random.default_rng(seed)
    wholes: list[npt.NDArray[np.uint8]] = [
        getattr(library, name)() for name in ("astronaut", "cat", "coffee", "rocket")
    ]
    found = list[npt.NDArray[np.uint8]]()
    for index in range(count):
        whole = wholes[index % len(wholes)]
        height, width = (int(side) for side in rng.integers(41, 120, size=2))
        top, left = int(rng.integers(whole.shape[0] - height)), int(rng.integers(whole.shape[1] - width))
        found.append(np.ascontiguousarray(whole[top : top + height, left : left + width]))
    return found


def scenes(root: Path) -> npt.NDArray[np.uint8]:
    """12 images of odd sizes and maps of 3 classes in ADE20K's numbers; the maps as a model of SIDE sees them."""
    rng, seen = np.random.default_rng(0), list[npt.NDArray[np.uint8]]()
    for name in ("images", "annotations"):
        (root / name).mkdir(parents=True)
    for index, pixels in enumerate(pieces(12, 1)):
        labels = np.zeros(pixels.shape[:2], np.uint8)
        for label in (1, 2, 3):
            top, left = (int(rng.integers(side - 20)) for side in labels.shape)
            labels[top : top + 20, left : left + 20] = label
        Image.fromarray(pixels).save(root / "images" / f"{index:02d}.png")
        Image.fromarray(labels).save(root / "annotations" / f"{index:02d}.png")
        seen.append(np.asarray(squeezed(Image.fromarray(labels), Image.Resampling.NEAREST)))
    return np.stack(seen)


def squeezed(image: Image.Image, resampling: Image.Resampling) -> Image.Image:
    """As SegFormer's image processor resizes: both sides to SIDE."""
    return image.resize((SIDE, SIDE), resampling)


def transformers_model(path: Path, name: str, arguments: dict[str, Any]) -> tuple[Path, torch.nn.Module, Any]:
    spec = ArchSpec(source="transformers", name=name, arguments=arguments)
    torch.manual_seed(0)
    module: Any = module_from_transformers(spec).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
        if name.startswith("Segformer"):  # classes in balance, or every pixel would be of one
            head: Any = module.decode_head.classifier
            head.bias -= module(torch.randn(4, 3, SIDE, SIDE)).mean(dim=(0, 2, 3))
    declared = preprocessing_of(spec, module)
    save_checkpoint(path, module, arch=spec, preprocessing=declared)
    return path, module, declared


def normalised(image: Image.Image, declared: Any) -> torch.Tensor:
    pixels = torch.from_numpy(np.asarray(image, np.float32)).movedim(2, 0) / 255
    return (pixels - torch.tensor(declared.mean)[:, None, None]) / torch.tensor(declared.std)[:, None, None]


SEGFORMER: dict[str, Any] = {
    "hidden_sizes": [32, 32, 64, 64],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "sr_ratios": [4, 2, 1, 1],
    "decoder_hidden_size": 64,
    "num_labels": 3,
    "input_size": [SIDE, SIDE],
}
DETR: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "num_queries": 20,
    "num_labels": 3,
    "input_size": [SIDE, SIDE],
}
DETR_SEGMENTATION: dict[str, Any] = {**DETR, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
_SWIN: dict[str, Any] = {
    "model_type": "swin",
    "embed_dim": 24,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 3, 4],
    "window_size": 4,
    "image_size": SIDE,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
_UPERNET: dict[str, Any] = {
    "model_type": "upernet",
    "num_labels": 3,
    "use_auxiliary_head": False,
    "hidden_size": 32,
    "pool_scales": [1, 2],
    "backbone_config": _SWIN,
}
UPERNET: dict[str, Any] = {"config": json.dumps(_UPERNET), "input_size": [SIDE, SIDE]}
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def results_of(module: torch.nn.Module, image: Image.Image, declared: Any) -> list[dict[str, Any]]:
    """The likeliest boxes in the image's pixels, as COCO has results."""
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    canvas = torch.zeros(1, 3, SIDE, SIDE)
    fitted = image.resize((width, height), FILTERS[declared.interpolation])
    canvas[0, :, :height, :width] = normalised(fitted, declared)
    with torch.no_grad():
        logits, boxes, *_ = module(canvas)
    shares = logits[0].softmax(-1)[:, :-1]
    across, down = SIDE * image.width / width, SIDE * image.height / height
    results = list[dict[str, Any]]()
    for place in shares.flatten().argsort(descending=True)[:100]:
        query, label = divmod(int(place), shares.shape[1])
        x, y, wide, high = boxes[0, query].tolist()
        box = [(x - wide / 2) * across, (y - high / 2) * down, wide * across, high * down]
        results.append({"category_id": label, "bbox": box, "score": float(shares[query, label])})
    return results
