"""The families at their full sizes, as `gpusq-build --arch` would name them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from gpusq_deploy.artifacts import ArchArgument, ArchSpec
from gpusq_deploy.frontend import Checkpoint, module_from_arch, preprocessing_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One row."""

    name: str
    spec: ArchSpec
    batch: int = 8


def fill_zeros(module: torch.nn.Module, std: float) -> None:
    """Random numbers for parameters of zeros, which would hide a mistake, and what is built of them."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.normal_(std=std)


def random_checkpoint(family: Family) -> Checkpoint:
    """A family's model with seeded random weights."""
    torch.manual_seed(0)
    module = module_from_arch(family.spec).requires_grad_(requires_grad=False)
    fill_zeros(module, 0.02)
    return Checkpoint(
        file="random weights",
        digest="none",
        format="none",
        arch=family.spec,
        module=module,
        preprocessing=preprocessing_of(family.spec, module),
    )


def _timm(name: str, model: str, **arguments: ArchArgument) -> Family:
    return Family(name=name, spec=ArchSpec(source="timm", name=model, arguments=arguments))


def _dino(name: str, model: str) -> Family:
    return _timm(name, model, img_size=224, num_classes=0, global_pool="")


def _torchvision(name: str, model: str) -> Family:
    return Family(name=name, spec=ArchSpec(source="torchvision", name=model))


def _hf(
    name: str, model: str, config: dict[str, Any], *, size: tuple[int, int] | None = None, batch: int = 8
) -> Family:
    arguments: dict[str, ArchArgument] = {"config": json.dumps(config, sort_keys=True)}
    if size is not None:
        arguments["input_size"] = list(size)
    return Family(name=name, spec=ArchSpec(source="transformers", name=model, arguments=arguments), batch=batch)


def _part(name: str, part: str, batch: int) -> Family:
    """Of a Mask R-CNN on a Swin-T; see docs/detectors.md."""
    arguments: dict[str, ArchArgument] = {"height": 800, "width": 1056}
    spec = ArchSpec(source="factory", name=f"gpusq_deploy.contrib.detectors.parts:{part}", arguments=arguments)
    return Family(name=f"torchvision Mask R-CNN, Swin-T, {name}", spec=spec, batch=batch)


_SWIN = {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_RESNET = {"model_type": "resnet", "depths": [3, 4, 6, 3], "layer_type": "bottleneck"}
_DETECTOR = {"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False}

FAMILIES: tuple[Family, ...] = (
    _timm("DeiT-T", "deit_tiny_patch16_224"),
    _timm("DeiT-S", "deit_small_patch16_224"),
    _timm("DeiT-S distilled", "deit_small_distilled_patch16_224"),
    _dino("DINOv2 ViT-S/14", "vit_small_patch14_dinov2"),
    _dino("DINOv2 ViT-S/14, registers", "vit_small_patch14_reg4_dinov2"),
    _timm("Swin-T", "swin_tiny_patch4_window7_224"),
    _torchvision("torchvision swin_t", "swin_t"),
    _hf("transformers Swin-T", "SwinForImageClassification", {**_SWIN, "image_size": 224}),
    _timm("Swin V2-T, window 8", "swinv2_tiny_window8_256"),
    _hf(
        "transformers SegFormer-B0, 512x512",
        "SegformerForSemanticSegmentation",
        {"model_type": "segformer", "num_labels": 150},
        size=(512, 512),
    ),
    _timm("ViT-B/16", "vit_base_patch16_224"),
    _timm("DeiT-B", "deit_base_patch16_224"),
    _torchvision("torchvision vit_b_16", "vit_b_16"),
    _hf("transformers ViT-B/16", "ViTForImageClassification", {"model_type": "vit", "num_labels": 1000}),
    _dino("DINOv2 ViT-B/14", "vit_base_patch14_dinov2"),
    _timm("Swin-S", "swin_small_patch4_window7_224"),
    _timm("Swin-B", "swin_base_patch4_window7_224"),
    _timm("Swin-B, 384x384", "swin_base_patch4_window12_384"),
    _hf(
        "transformers UPerNet with Swin-T, 512x512",
        "UperNetForSemanticSegmentation",
        {
            "model_type": "upernet",
            "num_labels": 150,
            "auxiliary_in_channels": 384,
            "backbone_config": {**_SWIN, "image_size": 512, "out_features": _STAGES},
        },
        size=(512, 512),
        batch=2,
    ),
    _hf(
        "transformers DETR, ResNet-50, 800x1056",
        "DetrForObjectDetection",
        {"model_type": "detr", **_DETECTOR, "backbone_config": {**_RESNET, "out_features": ["stage4"]}},
        size=(800, 1056),
        batch=1,
    ),
    _hf(
        "transformers Deformable DETR, ResNet-50, 480x640",
        "DeformableDetrForObjectDetection",
        {"model_type": "deformable_detr", **_DETECTOR, "backbone_config": {**_RESNET, "out_features": _STAGES[1:]}},
        size=(480, 640),
        batch=1,
    ),
    _part("backbone and pyramid, 800x1056", "dense", 1),
    _part("box head, 1000 regions", "box", 1000),
    _part("mask head, 100 regions", "mask", 100),
    _timm("ViT-L/16", "vit_large_patch16_224"),
    _dino("DINOv2 ViT-L/14", "vit_large_patch14_dinov2"),
    _dino("DINOv2 ViT-g/14 (SwiGLU)", "vit_giant_patch14_dinov2"),
    _timm("ViT-g/14", "vit_giant_patch14_224"),
)
