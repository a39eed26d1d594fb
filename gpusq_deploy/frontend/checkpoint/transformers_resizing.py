"""How an image processor of transformers resizes and crops, from its attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gpusq_deploy.artifacts import CropMode
from gpusq_deploy.frontend.checkpoint.mappings import mapping_of
from gpusq_deploy.frontend.checkpoint.transformers_models import size_of

Size = tuple[int, int]

# What is read here; `default_to_square` says whether a bare number is both sides or the shorter one.
RESIZING_KEYS = (
    *("size", "crop_size", "do_resize", "do_center_crop", "crop_pct", "default_to_square", "keep_aspect_ratio"),
)
# Whose tensors `tests/unit/frontend/checkpoint/test_published_pixels.py` compares with those made here.
COMPARED = frozenset(
    f"{name}ImageProcessor"
    for name in (
        *("Beit", "Bit", "Blip", "ChineseCLIP", "CLIP", "ConvNext", "DeiT", "DepthPro", "DINOv3ViT", "DPT", "Flava"),
        *("Levit", "Llava", "MobileNetV1", "MobileNetV2", "OwlViT", "PoolFormer", "PromptDepthAnything", "Pvt"),
        *("RTDetr", "Sam2", "Sapiens2", "Segformer", "SegGpt", "Siglip", "ViT"),
    )
)
# ConvNeXT's processor crops by `crop_pct` below this size, and squeezes from there on.
_CROPPED_BELOW = 384
# LeViT's processor resizes to this many times what it declares.
_LEVIT, _LEVIT_SCALE = "LevitImageProcessor", 256 / 224
# This one takes a square for a shorter side.
_POOLFORMER = "PoolFormerImageProcessor"


class Resizing(NamedTuple):
    """See `Preprocessing`."""

    crop_mode: CropMode
    crop_fraction: float


def resizing_of(preprocessor: Mapping[str, Any]) -> Resizing:
    """What a preprocessor does where it gives all images one size; else the nearest to it, see `sizes_vary`.

    1. A size of both sides: `squash`. DeiT's and BEiT's crop from that.
    2. A shorter side: `center`; a crop that isn't square isn't a share of it.
    3. `crop_pct` without a crop is ConvNeXT's: its share below 384, squash above. With a crop it is PoolFormer's.

    Raises:
        ValueError: A crop that no share of the resized image describes.
    """
    crop, shorter = _crop(preprocessor), _shorter(preprocessor)
    share: Any = preprocessor.get("crop_pct")
    if shorter is not None and share and crop is None:
        squeezed = shorter >= _CROPPED_BELOW
        return Resizing("squash", 1.0) if squeezed else Resizing("center", float(share))
    if preprocessor.get("do_resize") is False or preprocessor.get("keep_aspect_ratio"):
        return Resizing("center", 1.0)
    if shorter is not None:
        return Resizing("center", _share(crop or (shorter, shorter), _scaled(shorter, preprocessor)))
    whole = size_of(preprocessor.get("size"))
    if whole is None:
        return Resizing("center", 1.0)
    return Resizing("squash", _share(crop or whole, whole))


def prepared_size(preprocessor: Mapping[str, Any]) -> Size | None:
    """Height and width of what the processor gives, where that is one size for all images.

    A shorter side alone is a square: here a centre crop follows every such resize.
    """
    crop, shorter = _crop(preprocessor), _shorter(preprocessor)
    if crop is not None or preprocessor.get("do_resize") is False:
        return crop
    return size_of(preprocessor.get("size")) if shorter is None else (shorter, shorter)


def sizes_vary(preprocessor: Mapping[str, Any]) -> str:
    """Why the processor gives images of many sizes; empty where it gives one."""
    crop, shorter = _crop(preprocessor), _shorter(preprocessor)
    if preprocessor.get("do_resize") is False:
        return "it resizes none"
    if preprocessor.get("keep_aspect_ratio"):
        return "keep_aspect_ratio"
    if crop is not None or (shorter is not None and preprocessor.get("crop_pct")):
        return ""
    if shorter is not None:
        return f"their shorter side becomes {shorter}, and none is cropped"
    size = preprocessor.get("size")
    named = ", ".join(f"{name} {value}" for name, value in mapping_of(size).items() if value)
    return "" if size_of(size) is not None else f"they keep their proportions: {named or 'it has no size'}"


def _crop(preprocessor: Mapping[str, Any]) -> Size | None:
    return size_of(preprocessor.get("crop_size")) if preprocessor.get("do_center_crop") else None


def _shorter(preprocessor: Mapping[str, Any]) -> int | None:
    """The shorter side that images are resized to; None where both sides are said, or a longer one too."""
    size: Any = preprocessor.get("size")
    if isinstance(size, int):
        return None if preprocessor.get("default_to_square") else size
    named, whole = mapping_of(size), size_of(size)
    if whole is not None:
        return whole[0] if preprocessor.get("image_processor_type") == _POOLFORMER and whole[0] == whole[1] else None
    named_alone = named.get("shortest_edge") is not None and not named.get("longest_edge")
    return int(named["shortest_edge"]) if named_alone else None


def _scaled(shorter: int, preprocessor: Mapping[str, Any]) -> Size:
    if preprocessor.get("crop_pct"):
        shorter = int(shorter / float(preprocessor["crop_pct"]))
    if preprocessor.get("image_processor_type") == _LEVIT:
        shorter = int(_LEVIT_SCALE * shorter)
    return shorter, shorter


def _share(crop: Size, resized: Size) -> float:
    if crop[0] * resized[1] != crop[1] * resized[0]:
        raise ValueError(
            f"crop_size {crop[0]} x {crop[1]} of {resized[0]} x {resized[1]}: a crop must have the same proportions"
        )
    if crop[0] > resized[0]:
        raise ValueError(f"crop_size {crop[0]} is larger than size {resized[0]}: images aren't padded")
    return crop[0] / resized[0]
