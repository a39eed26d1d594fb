"""A small Mask R-CNN on a Swin, with weights that make it find something, and its parts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from filling import fill_zeros

from gpusq_deploy.artifacts.arch import ArchArgument, ArchSpec
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.contrib.detectors.parts import BoxPart, DensePart, MaskPart, Part
from gpusq_deploy.contrib.detectors.swin import mask_rcnn_swin
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of
from gpusq_deploy.frontend.export.onnx_export import export_float_model

SIZE = (128, 160)
MOST = 20
ARGUMENTS: dict[str, ArchArgument] = {
    "embed_dim": 32,
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 8],
    "window_size": 4,
    "out_channels": 32,
    "num_classes": 5,
    "min_size": SIZE[0],
    "max_size": SIZE[1],
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 60,
    "box_score_thresh": 0.1,
    "box_detections_per_img": MOST,
}
PARTS: dict[str, type[Part]] = {"dense": DensePart, "box": BoxPart, "mask": MaskPart}
BATCHES = {"dense": 1, "box": 60, "mask": MOST}


@functools.cache
def detector() -> Any:
    """Seeded; its heads are louder than random ones, or all scores would be alike. Treat it as read-only."""
    arguments: dict[str, Any] = ARGUMENTS
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        module: Any = mask_rcnn_swin(**arguments).eval().requires_grad_(requires_grad=False)
        fill_zeros(module, 0.05)
        module.rpn.head.cls_logits.weight.mul_(100)
        module.rpn.head.bbox_pred.weight.mul_(10)
        module.roi_heads.box_predictor.cls_score.weight.mul_(30)
        module.roi_heads.box_predictor.bbox_pred.weight.mul_(10)
        module.roi_heads.mask_predictor.mask_fcn_logits.weight.mul_(10)
    return module


def spec(name: str, **changes: ArchArgument) -> ArchSpec:
    """A part as `--arch` names it."""
    arguments = {"height": SIZE[0], "width": SIZE[1], **ARGUMENTS, **changes}
    return ArchSpec(source="factory", name=f"gpusq_deploy.contrib.detectors.parts:{name}", arguments=arguments)


def part(name: str) -> Part:
    """Of the detector above."""
    return PARTS[name](detector(), SIZE).eval()


def checkpoint(name: str) -> Checkpoint:
    """The part as the pipeline takes it."""
    module, arch = part(name), spec(name)
    return Checkpoint(
        file=name, digest="", format="", arch=arch, module=module, preprocessing=preprocessing_of(arch, module)
    )


def export(name: str, *, batch: BatchRange) -> Any:
    """The part's float graph."""
    return export_float_model(checkpoint(name), batch=batch)


def save(path: Path) -> Path:
    """The whole detector's state dict, as torchvision's users have it."""
    torch.save(detector().state_dict(), path)
    return path
