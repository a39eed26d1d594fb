"""What a torchvision MaskRCNN does between its dense parts, as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gpusq_deploy.contrib.detectors.library import torchvision_module
from gpusq_deploy.contrib.detectors.parts import Part

Boxes = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coder:
    """From deltas to boxes: centres move by `delta / weight · side`, sides grow by `exp(delta / weight)`.

    Attributes:
        weights: Of x, y, width and height.
        clip: Largest exponent.
    """

    weights: tuple[float, float, float, float]
    clip: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """RoIAlign from the map that suits a region's size: equation 1 of Lin et al., "Feature Pyramid Networks" (2017).

    Attributes:
        maps: Places of the maps among those of the pyramid, the finest first.
        scales: Of each map to the image.
        lowest: Level of the first map, log2 of its stride; the others follow by one.
        canonical_size: Side of a region, in pixels, that belongs to `canonical_level`.
        canonical_level: See `canonical_size`.
        epsilon: Added to a level before it is rounded down.
        output: Height and width of what is pooled.
        sampling: Samples along a side of an output pixel; 0 for as many as it covers.
    """

    maps: tuple[int, ...]
    scales: tuple[float, ...]
    lowest: int
    canonical_size: float
    canonical_level: float
    epsilon: float
    output: tuple[int, int]
    sampling: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which boxes are kept.

    Attributes:
        before: At most so many of each map, by score, before overlapping ones go; None for all.
        after: At most so many in the end.
        overlap: Intersection over union above which the box of the lower score goes.
        score: Smallest score.
        side: Smallest width and height, in pixels.
    """

    before: int | None
    after: int
    overlap: float
    score: float
    side: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Everything that the graphs between the parts are made of.

    Attributes:
        maps: Height and width of each map.
        channels: Of every map.
        anchors: Of each map, float32 [h · w · A, 4], in the order of its places, then of its anchors.
    """

    maps: tuple[tuple[int, int], ...]
    channels: int
    anchors: tuple[Boxes, ...]
    proposal_coder: Coder
    proposals: Choice
    box_coder: Coder
    boxes: Choice
    box_pool: Pool
    mask_pool: Pool


def settings_of(part: Part) -> Settings:
    """Read them off a part: any of the three, for each holds the whole detector."""
    rpn, heads, pyramid = part.rpn, part.roi_heads, part.pyramid
    sizes = tuple(pyramid.maps.values())
    return Settings(
        maps=sizes,
        channels=pyramid.channels,
        anchors=_anchors(rpn.anchor_generator, pyramid.size, sizes),
        proposal_coder=_coder(rpn.box_coder),
        proposals=Choice(
            before=int(rpn.pre_nms_top_n()),
            after=int(rpn.post_nms_top_n()),
            overlap=float(rpn.nms_thresh),
            score=float(rpn.score_thresh),
            side=float(rpn.min_size),
        ),
        box_coder=_coder(heads.box_coder),
        boxes=Choice(
            before=None,
            after=int(heads.detections_per_img),
            overlap=float(heads.nms_thresh),
            score=float(heads.score_thresh),
            side=1e-2,  # written out in torchvision's RoIHeads.postprocess_detections
        ),
        box_pool=_pool(heads.box_roi_pool, pyramid.size, pyramid.maps),
        mask_pool=_pool(heads.mask_roi_pool, pyramid.size, pyramid.maps),
    )


def _coder(coder: Any) -> Coder:
    x, y, width, height = (float(weight) for weight in coder.weights)
    return Coder(weights=(x, y, width, height), clip=float(coder.bbox_xform_clip))


def _pool(pool: Any, size: tuple[int, int], maps: Mapping[str, tuple[int, int]]) -> Pool:
    places = tuple(place for place, name in enumerate(maps) if name in pool.featmap_names)
    heights = [list(maps.values())[place][0] for place in places]
    # Levels, as torchvision rounds them: a map's stride is taken for a power of two.
    levels = [round(float(np.log2(size[0] / height))) for height in heights]
    poolers: Any = torchvision_module("torchvision.ops.poolers")
    mapper = poolers.LevelMapper(levels[0], levels[-1], pool.canonical_scale, pool.canonical_level)
    height, width = pool.output_size
    return Pool(
        maps=places,
        scales=tuple(2.0**-level for level in levels),
        lowest=levels[0],
        canonical_size=float(mapper.s0),
        canonical_level=float(mapper.lvl0),
        epsilon=float(mapper.eps),
        output=(int(height), int(width)),
        sampling=max(0, int(pool.sampling_ratio)),
    )


def _anchors(generator: Any, size: tuple[int, int], maps: tuple[tuple[int, int], ...]) -> tuple[Boxes, ...]:
    images: Any = torchvision_module("torchvision.models.detection.image_list")
    listed = images.ImageList(torch.empty(1, 3, *size), [size])
    every: Boxes = generator(listed, [torch.empty(1, 1, *shape) for shape in maps])[0].numpy()
    counts = [h * w * n for (h, w), n in zip(maps, generator.num_anchors_per_location(), strict=True)]
    return tuple(np.split(every, np.cumsum(counts)[:-1]))
