"""Networks that no `--arch` name reaches: transformers models with random weights, as modules with tensor outputs."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn


class _Outputs(nn.Module):
    """A transformers model, called with pixels alone, that answers with the named tensors."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels [N, 3, H, W], normalised."""
        answer: Any = self.model(pixel_values=pixels)
        return tuple(getattr(answer, name) for name in self.names)


def detr(size: int = 480) -> nn.Module:
    """DETR with a ResNet-50, 100 queries, six layers of encoder and six of decoder; class logits and boxes."""
    transformers = importlib.import_module("transformers")
    config: Any = transformers.DetrConfig(use_pretrained_backbone=False)
    return _sized(_Outputs(transformers.DetrForObjectDetection(config), "logits", "pred_boxes"), size)


def upernet(size: int = 512) -> nn.Module:
    """UPerNet on a Swin-T, 150 classes; logits for every pixel.

    Attention is written out: with torch's fused one, transformers' Swin can't be exported.
    """
    transformers = importlib.import_module("transformers")
    backbone: Any = transformers.SwinConfig(
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        attn_implementation="eager",
    )
    config: Any = transformers.UperNetConfig(
        backbone_config=backbone, num_labels=150, use_auxiliary_head=False, attn_implementation="eager"
    )
    return _sized(_Outputs(transformers.UperNetForSemanticSegmentation(config), "logits"), size)


def _sized(module: nn.Module, size: int) -> nn.Module:
    described: Any = module
    described.gpusq_preprocessing = {
        "channels": 3,
        "height": size,
        "width": size,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    return module
