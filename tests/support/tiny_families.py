"""One small seeded model of every family, as `--arch` would name it."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import torch
from filling import fill_zeros

from gpusq_deploy.artifacts.arch import ArchArgument, ArchSpec
from gpusq_deploy.frontend.checkpoint.architecture import module_from_arch
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.frontend.checkpoint.preprocessing import preprocessing_of

_VIT: dict[str, ArchArgument] = {"img_size": 28, "embed_dim": 64, "depth": 1, "num_heads": 2}
_WINDOWS: dict[str, ArchArgument] = {"img_size": 64, "embed_dim": 32, "depths": [2], "num_heads": [1], "window_size": 4}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_SWIN: dict[str, Any] = {
    "model_type": "swin",
    "image_size": 64,
    "embed_dim": 32,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 2, 4],
    "window_size": 2,
}
_RESNET: dict[str, Any] = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 32, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
_DETECTOR: dict[str, Any] = {
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
    "d_model": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 10,
}


def _hf(name: str, size: tuple[int, int] | None = None, **config: Any) -> ArchSpec:
    arguments: dict[str, ArchArgument] = {"config": json.dumps(config)}
    if size is not None:
        arguments["input_size"] = list(size)
    return ArchSpec(source="transformers", name=name, arguments=arguments)


def _timm(name: str, base: dict[str, ArchArgument], **changes: ArchArgument) -> ArchSpec:
    return ArchSpec(source="timm", name=name, arguments={**base, **changes})


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiny:
    """A family, how many attentions are found in its graph, and how many packed products their projections make."""

    spec: ArchSpec
    attentions: int
    packed: int = 0


HF_VIT = _hf(
    "ViTForImageClassification",
    model_type="vit",
    image_size=32,
    patch_size=8,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=128,
)
FAMILIES: dict[str, Tiny] = {
    "deit-distilled": Tiny(
        spec=_timm("deit_tiny_distilled_patch16_224", _VIT, img_size=32, patch_size=8), attentions=1
    ),
    "dinov2-registers": Tiny(
        spec=_timm("vit_small_patch14_reg4_dinov2", _VIT, num_classes=0, global_pool=""), attentions=1
    ),
    "dinov2-swiglu": Tiny(
        spec=_timm("vit_giant_patch14_dinov2", {**_VIT, "embed_dim": 96}, num_classes=0, global_pool=""), attentions=1
    ),
    "swin": Tiny(spec=_timm("swin_tiny_patch4_window7_224", _WINDOWS), attentions=2),
    "swin-v2": Tiny(spec=_timm("swinv2_tiny_window8_256", _WINDOWS), attentions=2),
    "transformers-vit": Tiny(spec=HF_VIT, attentions=2, packed=2),
    "transformers-swin": Tiny(spec=_hf("SwinForImageClassification", **_SWIN), attentions=5, packed=5),
    "segformer": Tiny(
        spec=_hf(
            "SegformerForSemanticSegmentation",
            size=(64, 64),
            model_type="segformer",
            depths=[1, 1],
            num_encoder_blocks=2,
            sr_ratios=[4, 1],
            patch_sizes=[7, 3],
            strides=[4, 2],
            mlp_ratios=[2, 2],
            hidden_sizes=[32, 64],
            num_attention_heads=[1, 2],
            decoder_hidden_size=32,
        ),
        attentions=2,
        packed=1,
    ),
    "upernet-swin": Tiny(
        spec=_hf(
            "UperNetForSemanticSegmentation",
            size=(64, 64),
            model_type="upernet",
            backbone_config={**_SWIN, "out_features": _STAGES},
            hidden_size=32,
            num_labels=5,
            auxiliary_in_channels=128,
            auxiliary_channels=16,
        ),
        attentions=5,
        packed=5,
    ),
    "detr": Tiny(
        spec=_hf(
            "DetrForObjectDetection",
            size=(64, 96),
            model_type="detr",
            **_DETECTOR,
            backbone_config={**_RESNET, "out_features": ["stage4"]},
        ),
        attentions=3,
    ),
    "deformable-detr": Tiny(
        spec=_hf(
            "DeformableDetrForObjectDetection",
            size=(64, 96),
            model_type="deformable_detr",
            **_DETECTOR,
            backbone_config={**_RESNET, "out_features": _STAGES[1:]},
        ),
        attentions=1,
    ),
    "torchvision-swin": Tiny(spec=ArchSpec(source="factory", name="tiny_families:torchvision_swin"), attentions=2),
    "torchvision-vit": Tiny(spec=ArchSpec(source="factory", name="tiny_families:torchvision_vit"), attentions=1),
}


def torchvision_swin() -> torch.nn.Module:
    """torchvision names its sizes by model: this is one that it has no name for."""
    from torchvision.models.swin_transformer import SwinTransformer

    return _declared(SwinTransformer([4, 4], 32, [2], [1], [4, 4], num_classes=8))


def torchvision_vit() -> torch.nn.Module:
    """As above."""
    from torchvision.models.vision_transformer import VisionTransformer

    return _declared(VisionTransformer(32, 8, 1, 2, 64, 128, num_classes=8))


def _declared(module: torch.nn.Module) -> torch.nn.Module:
    preprocessing = {"channels": 3, "height": 32, "width": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    object.__setattr__(module, "gpusq_preprocessing", preprocessing)
    return module


@functools.cache
def checkpoint(name: str) -> Checkpoint:
    """The family's model with seeded weights, none of them zero throughout. Treat it as read-only."""
    spec = FAMILIES[name].spec
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = module_from_arch(spec).requires_grad_(requires_grad=False)
        fill_zeros(module, 0.05)
    return Checkpoint(
        file=name, digest="", format="", arch=spec, module=module, preprocessing=preprocessing_of(spec, module)
    )
