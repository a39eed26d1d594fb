"""What a model's input looks like, from what its library declares."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import torch

from gpusq_deploy.artifacts import ArchSpec, Preprocessing, preprocessing_of_shape
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.transformers_input import (
    ARRAYS_DO,
    UndeclaredError,
    per_channel,
    preprocessing_of_transformers,
)

_ATTRIBUTE = "module attribute gpusq_preprocessing"
_FACTORY_HINT = (
    "give the module an attribute gpusq_preprocessing, a dict with channels, height, width, mean and std "
    "(and interpolation, crop_fraction), or of an input that is no image with the shape of a sample alone, "
    "docs/checkpoints.md; " + ARRAYS_DO
)


def preprocessing_of(
    spec: ArchSpec, module: torch.nn.Module, preprocessor: Mapping[str, Any] | None = None
) -> Preprocessing:
    """Preprocessing that the architecture declares, or `preprocessor`, the preprocessor_config.json beside its weights.

    Raises:
        UndeclaredError: It declares none.
        GpusqError: It declares one that makes no sense.
    """
    declared: Any = getattr(module, "gpusq_preprocessing", None)
    if declared is not None:
        return _from_attribute(spec, declared)
    if spec.source == "transformers":
        return preprocessing_of_transformers(spec, module, preprocessor)
    if any(kind.__name__ == "GeneralizedRCNN" for kind in type(module).__mro__):
        raise UndeclaredError(
            "a detector of torchvision resizes its images itself, and has NMS in its middle",
            place=str(spec),
            hint="gpusq-detector builds a Mask R-CNN (docs/detectors.md), and gpusq-run runs what it made",
        )
    try:
        if spec.source == "torchvision":
            return _from_torchvision(spec, module)
        if hasattr(module, "pretrained_cfg"):
            return _from_timm(module)
    except (AttributeError, ValueError) as error:  # other tasks' transforms, or a number of channels of no image
        raise UndeclaredError(
            f"its preprocessing is not an image classifier's: {error}", place=str(spec), hint=ARRAYS_DO
        ) from error
    raise UndeclaredError("the architecture declares no preprocessing", place=str(spec), hint=_FACTORY_HINT)


def _from_attribute(spec: ArchSpec, declared: Any) -> Preprocessing:
    try:
        plain = {name: _plain(value) for name, value in declared.items()}
        if set(plain) == {"shape"}:
            return preprocessing_of_shape(msgspec.convert(plain["shape"], tuple[int, ...]), _ATTRIBUTE)
        return msgspec.convert({"origin": _ATTRIBUTE, **plain}, type=Preprocessing)
    except (AttributeError, TypeError, msgspec.ValidationError) as error:
        raise GpusqError(f"gpusq_preprocessing is not valid: {error}", place=str(spec), hint=_FACTORY_HINT) from error


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's; whatever else as it is."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(item) for item in cast("list[Any]", value)] if isinstance(value, (list, tuple)) else value


def _from_timm(module: torch.nn.Module) -> Preprocessing:
    data: dict[str, Any] = importlib.import_module("timm.data").resolve_model_data_config(module)
    channels, height, width = _input_size(module, data["input_size"])
    return Preprocessing(
        channels=channels,
        height=height,
        width=width,
        mean=per_channel(data["mean"], channels),
        std=per_channel(data["std"], channels),
        interpolation=data["interpolation"],
        crop_fraction=float(data["crop_pct"]),
        crop_mode=data["crop_mode"] if data["crop_mode"] in ("squash", "border") else "center",
        origin="timm pretrained_cfg",
    )


def _input_size(module: torch.nn.Module, declared: tuple[int, int, int]) -> tuple[int, int, int]:
    """The config keeps the size it was trained at; `img_size=` and `in_chans=` show in the patch embedding."""
    channels, height, width = declared
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    if size is not None:
        height, width = size
    weight = next((p for name, p in module.named_parameters() if name.startswith("patch_embed.") and p.ndim == 4), None)
    return (channels if weight is None else int(weight.shape[1])), int(height), int(width)


def _from_torchvision(spec: ArchSpec, module: torch.nn.Module) -> Preprocessing:
    """Its ViTs know the size that they were built for, `image_size`.

    Where the default weights are of another size, the transforms are those of weights of that size; there being none,
    the share of a crop is the default's.
    """
    models: Any = importlib.import_module("torchvision.models")
    weights = models.get_model_weights(spec.name)
    declared = int(weights.DEFAULT.transforms().crop_size[0])
    size = int(getattr(module, "image_size", declared))
    of_size = (each for each in (weights.DEFAULT, *weights) if int(each.transforms().crop_size[0]) == size)
    chosen: Any = next(of_size, weights.DEFAULT)
    transform = chosen.transforms()
    return Preprocessing(
        channels=3,
        height=size,
        width=size,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        crop_fraction=int(transform.crop_size[0]) / int(transform.resize_size[0]),
        origin="torchvision default weights" if chosen == weights.DEFAULT else f"torchvision weights {chosen.name}",
    )
