"""The dense parts of a torchvision MaskRCNN, each an architecture of its own.

    gpusq-build detector.pt --arch gpusq_deploy.contrib.detectors.parts:dense --arch-arg height=800 …

`dense` is the backbone with its pyramid and the head of the region proposals, `box` and `mask` are the heads behind the
pooled regions. All three take the whole detector's checkpoint: each part holds all weights, its graph reads its own.
What lies between is `detectors.graphs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import nn

from gpusq_deploy.artifacts import ArchArgument
from gpusq_deploy.contrib.detectors.library import torchvision_module
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import arch_from_text, module_from_arch

SWIN_T = "gpusq_deploy.contrib.detectors.swin:mask_rcnn_swin"
_HINT = "the parts are those of torchvision.models.detection.MaskRCNN on a backbone with a feature pyramid"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pyramid:
    """The maps that the backbone answers for one image size.

    Attributes:
        size: Height and width of the image, in pixels.
        maps: Height and width of each map, by name, in the backbone's order.
        channels: Of every map.
    """

    size: tuple[int, int]
    maps: Mapping[str, tuple[int, int]]
    channels: int


class Part(nn.Module):
    """A detector's modules under their own names, so that its state dict fits; a subclass runs some of them.

    Attributes:
        pyramid: The maps, for the size that the part is for.
        gpusq_preprocessing: What its input is.
    """

    backbone: Any
    rpn: Any
    roi_heads: Any
    transform: Any

    def __init__(self, detector: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.pyramid = pyramid_of(detector, size)
        for name, child in detector.named_children():
            self.add_module(name, child)
        self.gpusq_preprocessing = self._input()

    def _input(self) -> dict[str, Any]:
        raise NotImplementedError

    def _pooled(self, pool: Any) -> dict[str, Any]:
        height, width = pool.output_size
        channels = self.pyramid.channels
        zeros, ones = [0.0] * channels, [1.0] * channels
        return {"channels": channels, "height": height, "width": width, "mean": zeros, "std": ones}


class DensePart(Part):
    """Images float32 [1, 3, H, W] to every map, then every map's objectness [1, A, h, w] and deltas [1, 4·A, h, w]."""

    def _input(self) -> dict[str, Any]:
        height, width = self.pyramid.size
        return {
            "channels": 3,
            "height": height,
            "width": width,
            "mean": list(self.transform.image_mean),
            "std": list(self.transform.image_std),
            "interpolation": "bilinear",
        }

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Normalised images of the part's size."""
        maps = list(self.backbone(images).values())
        objectness, deltas = self.rpn.head(maps)
        return (*maps, *objectness, *deltas)


class BoxPart(Part):
    """Pooled regions float32 [R, channels, 7, 7] to class logits [R, classes] and box deltas [R, 4·classes]."""

    def _input(self) -> dict[str, Any]:
        return self._pooled(self.roi_heads.box_roi_pool)

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What RoIAlign pooled for the proposals."""
        logits, deltas = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits, deltas


class MaskPart(Part):
    """Pooled regions float32 [D, channels, 14, 14] to mask logits [D, classes, 28, 28]."""

    def _input(self) -> dict[str, Any]:
        return self._pooled(self.roi_heads.mask_roi_pool)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """What RoIAlign pooled for the detections."""
        logits: torch.Tensor = self.roi_heads.mask_predictor(self.roi_heads.mask_head(pooled))
        return logits


def dense(*, height: int, width: int, detector: str = SWIN_T, **arguments: ArchArgument) -> DensePart:
    """The backbone, its pyramid, and the head of the region proposals.

    Args:
        height: Of the image, in pixels; `width` too.
        width: See `height`.
        detector: The whole detector, as `--arch` would name it.
        arguments: Of the detector.

    Raises:
        GpusqError: No such detector, one of another kind, or a size that it can't take.
    """
    return DensePart(_detector(detector, arguments), (height, width))


def box(*, height: int, width: int, detector: str = SWIN_T, **arguments: ArchArgument) -> BoxPart:
    """The head that classifies regions and moves their boxes; as `dense`."""
    return BoxPart(_detector(detector, arguments), (height, width))


def mask(*, height: int, width: int, detector: str = SWIN_T, **arguments: ArchArgument) -> MaskPart:
    """The head that draws masks; as `dense`."""
    return MaskPart(_detector(detector, arguments), (height, width))


def pyramid_of(detector: nn.Module, size: tuple[int, int]) -> Pyramid:
    """What the backbone answers for an image of `size`, found by its shapes alone.

    Raises:
        GpusqError: Not a MaskRCNN, no feature pyramid, or a size that it can't take.
    """
    found: Any = detector
    detection: Any = torchvision_module("torchvision.models.detection")
    kind = type(detector).__name__
    if not isinstance(detector, detection.MaskRCNN):
        raise GpusqError(f"the detector is a {kind}, not a MaskRCNN", place=kind, hint=_HINT)
    _require_size(size, int(found.transform.size_divisible))
    maps = _maps(found.backbone, size)
    if not isinstance(maps, Mapping) or len(cast("Mapping[str, Any]", maps)) < 2:
        raise GpusqError("its backbone answers one map, not a feature pyramid", place=kind, hint=_HINT)
    sizes = {str(name): (int(m.shape[-2]), int(m.shape[-1])) for name, m in cast("Mapping[str, Any]", maps).items()}
    for pool in (found.roi_heads.box_roi_pool, found.roi_heads.mask_roi_pool):
        unknown = sorted(set(pool.featmap_names) - sizes.keys())
        if unknown:
            answers = ", ".join(sizes)
            raise GpusqError(f"it pools from {', '.join(unknown)}, but its backbone answers {answers}", place=kind)
    if len(found.rpn.anchor_generator.sizes) != len(sizes):
        raise GpusqError(
            f"it has anchors for {len(found.rpn.anchor_generator.sizes)} maps, and {len(sizes)} maps", place=kind
        )
    return Pyramid(size=size, maps=sizes, channels=int(found.backbone.out_channels))


def _maps(backbone: nn.Module, size: tuple[int, int]) -> Any:
    """On the meta device: the weights stay where they are, and nothing is computed."""
    weights = {name: value.to("meta") for name, value in chain(backbone.named_parameters(), backbone.named_buffers())}
    was = backbone.training
    with torch.no_grad():
        found: Any = torch.func.functional_call(backbone.eval(), weights, torch.empty(1, 3, *size, device="meta"))
    backbone.train(was)
    return found


def _require_size(size: tuple[int, int], multiple: int) -> None:
    if min(size) < multiple or any(side % multiple for side in size):
        raise GpusqError(
            f"images of {size[0]}x{size[1]} pixels don't fit: both sides must be multiples of {multiple}",
            place="height and width",
            hint="smaller images are padded: take the largest that you expect, such as height=800 width=1056",
        )


def _detector(name: str, arguments: Mapping[str, ArchArgument]) -> nn.Module:
    spec = arch_from_text(name)
    return module_from_arch(type(spec)(source=spec.source, name=spec.name, arguments=dict(arguments)))
