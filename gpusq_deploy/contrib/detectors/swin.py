"""Mask R-CNN on a Swin with a feature pyramid, of torchvision's parts: torchvision itself has no such model by name.

The outputs of the stages, each behind a LayerNorm of its own, go into a feature pyramid, as in the detectors of Liu et
al., "Swin Transformer" (2021), section 4.2.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from gpusq_deploy.contrib.detectors.library import torchvision_module
from gpusq_deploy.errors import GpusqError

# Arguments that MaskRCNN hands on to its transform, which takes any other in silence.
_OF_TRANSFORM = frozenset({"size_divisible", "fixed_size"})


class SwinPyramid(nn.Module):
    """Images float32 [N, 3, H, W] to maps by name, [N, out_channels, h, w]: one per stage, and `pool` behind the last.

    Attributes:
        out_channels: Channels of every map; torchvision's detectors read it.
    """

    def __init__(self, features: nn.Sequential, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        ops: Any = torchvision_module("torchvision.ops")
        pyramid: Any = torchvision_module("torchvision.ops.feature_pyramid_network")
        self.body = features
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in channels)
        self.fpn: nn.Module = ops.FeaturePyramidNetwork(
            list(channels), out_channels, extra_blocks=pyramid.LastLevelMaxPool()
        )
        self.out_channels = out_channels

    def forward(self, images: torch.Tensor) -> Any:
        """A stage lies at every odd place of the body: behind the patch embedding, and behind each merging."""
        maps: dict[str, torch.Tensor] = {}
        tokens = images
        for place, step in enumerate(self.body):
            tokens = step(tokens)
            if place % 2:
                maps[str(place // 2)] = self.norms[place // 2](tokens).permute(0, 3, 1, 2)
        return self.fpn(maps)


def mask_rcnn_swin(
    *,
    embed_dim: int = 96,
    depths: Iterable[int] = (2, 2, 6, 2),
    num_heads: Iterable[int] = (3, 6, 12, 24),
    window_size: int = 7,
    out_channels: int = 256,
    num_classes: int = 91,
    **arguments: Any,
) -> nn.Module:
    """A MaskRCNN of torchvision on a Swin, with random weights; as it is, on a Swin-T.

    Args:
        embed_dim: Channels of the first stage; each next one has twice as many.
        depths: Blocks of each of the four stages.
        num_heads: Attention heads of each stage.
        window_size: Tokens along a side of a window.
        out_channels: Channels of every map of the pyramid.
        num_classes: With the background.
        arguments: Of torchvision's MaskRCNN.

    Raises:
        GpusqError: torchvision isn't installed, or its MaskRCNN has no such argument.
    """
    swin: Any = torchvision_module("torchvision.models.swin_transformer")
    detection: Any = torchvision_module("torchvision.models.detection")
    _require_known(arguments, detection.MaskRCNN)
    stages = list(depths)
    body: Any = swin.SwinTransformer([4, 4], embed_dim, stages, list(num_heads), [window_size] * 2)
    channels = [embed_dim << stage for stage in range(len(stages))]
    backbone = SwinPyramid(body.features, channels, out_channels)
    module: nn.Module = detection.MaskRCNN(backbone, num_classes=num_classes, **arguments)
    return module


def _require_known(arguments: Iterable[str], build: Any) -> None:
    known = inspect.signature(build).parameters.keys() | _OF_TRANSFORM
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            raise GpusqError(
                f"MaskRCNN has no argument {name!r}",
                place="--arch-arg",
                hint=f"did you mean {', '.join(near)}?" if near else "see torchvision.models.detection.MaskRCNN",
            )
