"""How images become the input of a model of transformers: its preprocessor_config.json, config and class say it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from gpusq_deploy.artifacts import ArchSpec, Interpolation, Preprocessing
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.optional_libraries import library
from gpusq_deploy.frontend.checkpoint.pretrained_folder import PREPROCESSOR
from gpusq_deploy.frontend.checkpoint.transformers_models import (
    INSTALL,
    class_of_images,
    config_of,
    offline,
    refusals,
    said_by,
    size_of,
    size_of_config,
)
from gpusq_deploy.frontend.checkpoint.transformers_resizing import (
    COMPARED,
    RESIZING_KEYS,
    Size,
    prepared_size,
    resizing_of,
    sizes_vary,
)

_KEYS = (
    *("image_mean", "image_std", "resample", "do_normalize", "do_rescale", "rescale_factor", "rescale_offset"),
    *("do_flip_channel_order", *RESIZING_KEYS),
)
# Parts of a config that is of several models.
_NESTED = ("vision_config", "backbone_config")
# How the origin of a preprocessing begins that no preprocessor_config.json said.
DEFAULTS = "defaults of transformers'"
# PIL's numbers, which preprocessor_config.json holds.
_RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


# What helps where no preprocessing is known.
ARRAYS_DO = "or give samples that are prepared already: --calib FILE.npy"


class UndeclaredError(GpusqError):
    """Nothing says how images become the model's input; arrays that are prepared already need no such thing."""


def preprocessing_of_transformers(
    spec: ArchSpec, module: torch.nn.Module, preprocessor: Mapping[str, Any] | None
) -> Preprocessing:
    """The preprocessing of preprocessor_config.json; without one, the defaults of the model's image processor.

    The size is the first that there is of

    1. `input_size=[H, W]`, or `image_size=`;
    2. the crop or the size of preprocessor_config.json, if the model runs at it;
    3. the config's `image_size`, or its `vision_config`'s;
    4. the `image_size` of the config's `backbone_config`, which may only say what the backbone was trained at;
    5. the crop or the size of the class's defaults.

    Raises:
        UndeclaredError: None is known, or no size.
        GpusqError: A preprocessing of another kind.
    """
    config: Any = module.config
    origin = PREPROCESSOR
    if preprocessor is None:
        preprocessor, origin = _defaults(spec, str(config.model_type))
    try:
        preprocessor = _completed(preprocessor)
        _require_modelled(preprocessor)
        channels = int(_said(config, "num_channels", *_NESTED) or 3)
        height, width = _size(spec, module, channels, preprocessor, stated=origin == PREPROCESSOR)
        return _preprocessing(preprocessor, (channels, height, width), origin)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise GpusqError(
            f"its preprocessing isn't one of images to tensors: {_fault(error)}",
            place=f"{spec}, {origin}",
            hint=_mending(spec, stated=origin == PREPROCESSOR),
        ) from error


def _preprocessing(preprocessor: Mapping[str, Any], shape: tuple[int, int, int], origin: str) -> Preprocessing:
    channels, height, width = shape
    resizing = resizing_of(preprocessor)
    return Preprocessing(
        channels=channels,
        height=height,
        width=width,
        mean=_normalised_by(preprocessor, "image_mean", 0.0, channels),
        std=_normalised_by(preprocessor, "image_std", 1.0, channels),
        interpolation=_interpolation(preprocessor),
        crop_fraction=resizing.crop_fraction,
        crop_mode=resizing.crop_mode,
        crop_offset="floor",
        origin=origin,
    )


def preprocessing_of_processor(preprocessor: Mapping[str, Any], sizes: tuple[int, ...], *, place: str) -> Preprocessing:
    """The same for an input [N, channels, height, width] of a model without a config; -1: as the processor prepares it.

    Raises:
        GpusqError: It is no preprocessing of images, or says no size where one is open.
    """
    try:
        preprocessor = _completed(preprocessor)
        _require_modelled(preprocessor)
        height, width = sizes[1], sizes[2]
        if min(height, width) < 1:
            height, width = prepared_size(preprocessor) or (height, width)
        channels = sizes[0] if sizes[0] > 0 else len(preprocessor["image_mean"])
        return _preprocessing(preprocessor, (channels, height, width), PREPROCESSOR)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise GpusqError(
            f"its {PREPROCESSOR} isn't one of images to tensors: {_fault(error)}",
            place=place,
            hint=f"correct the {PREPROCESSOR} beside the file",
        ) from error


def _fault(error: Exception) -> str:
    return f"it lacks {error.args[0]}" if isinstance(error, KeyError) else said_by(error)


def _mending(spec: ArchSpec, *, stated: bool) -> str:
    """What to do about a preprocessing that can't be used, by where it comes from."""
    mended = (
        f"correct the {PREPROCESSOR} beside the weights" if stated else f"put its {PREPROCESSOR} beside the weights"
    )
    return f"check --arch-arg input_size; or {mended}" if "input_size" in spec.arguments else mended


def _interpolation(preprocessor: Mapping[str, Any]) -> Interpolation:
    number: Any = preprocessor.get("resample")
    found = _RESAMPLE.get(2 if number is None else int(number))
    if found is None:
        raise ValueError(f"resample {number}: images are resized by PIL's {', '.join(map(str, _RESAMPLE))} alone")
    return found


def _require_modelled(preprocessor: Mapping[str, Any]) -> None:
    """Pixels are divided by 255, in the order red, green, blue: see `Preprocessing`."""
    factor: Any = preprocessor.get("rescale_factor")
    if preprocessor.get("do_rescale") is False or preprocessor.get("rescale_offset"):
        raise ValueError("do_rescale and rescale_offset: pixels are divided by 255, and nothing else")
    if factor is not None and not math.isclose(float(factor), 1 / 255, rel_tol=1e-3):
        raise ValueError(f"rescale_factor {factor}: pixels are divided by 255")
    if preprocessor.get("do_flip_channel_order"):
        raise ValueError("do_flip_channel_order: channels stay red, green, blue")


def _defaults(spec: ArchSpec, kind: str) -> tuple[Mapping[str, Any], str]:
    """The image processor of a kind of model; of a part or a variant, such as `clip_vision_model`, its family's."""
    known: Any = library("transformers.models.auto.image_processing_auto", hint=INSTALL).IMAGE_PROCESSOR_MAPPING_NAMES
    families = [name for name in known if kind == name or kind.startswith((f"{name}_", f"{name}-"))]
    named: Any = known[max(families, key=len)] if families else None
    names = (
        [named]
        if isinstance(named, str)
        else list(cast("Any", named or {}).values() if isinstance(named, dict) else named or ())
    )
    transformers = library("transformers", hint=INSTALL)
    for name in names:
        processor: Any = getattr(transformers, str(name), None)
        if processor is not None and getattr(processor, "image_mean", None) is not None:
            defaults = {key: getattr(processor, key, None) for key in _KEYS}
            return {"image_processor_type": name, **defaults}, f"{DEFAULTS} {name}"
    raise UndeclaredError(
        f"no preprocessing is known for a {kind}",
        place=str(spec),
        hint=f"put its {PREPROCESSOR} beside the weights; {ARRAYS_DO}",
    )


def _completed(preprocessor: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the defaults of the image processor that it names, which the library takes for what isn't there."""
    named = str(preprocessor.get("image_processor_type") or preprocessor.get("feature_extractor_type") or "")
    name = named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    kind: Any = getattr(library("transformers", hint=INSTALL), name, None) if name else None
    defaults = {key: getattr(kind, key, None) for key in _KEYS if key not in preprocessor}
    found = {key: value for key, value in defaults.items() if value is not None}
    return {**preprocessor, **found, "image_processor_type": name}


def _size(
    spec: ArchSpec, module: torch.nn.Module, channels: int, preprocessor: Mapping[str, Any], *, stated: bool
) -> Size:
    """See `preprocessing_of_transformers`; `stated`: the preprocessor is the model's own, not its class's defaults."""
    asked = [_asked_size(spec, name) for name in ("input_size", "image_size") if name in spec.arguments]
    config: Any = module.config
    own, prepared = size_of_config(config), prepared_size(preprocessor)
    backbone = size_of(_said(config, "image_size", "backbone_config"))
    published = prepared if stated and own is not None and _runs(module, channels, prepared, own) else None
    rest = (prepared, backbone) if stated else (backbone, prepared)
    for size in (*asked, published, own, *rest):
        if size is not None:
            return size
    raise UndeclaredError(
        "neither the config nor the preprocessor says one image size",
        place=str(spec),
        hint=f"add --arch-arg input_size=[480,640]; {ARRAYS_DO}",
    )


def _asked_size(spec: ArchSpec, name: str) -> Size:
    size = size_of(spec.arguments[name])
    if size is None:
        raise GpusqError(
            f"{name}={spec.arguments[name]} is not a size",
            place="--arch-arg",
            hint=f"{name}=[HEIGHT,WIDTH], or one number for both",
        )
    return size


def _runs(module: torch.nn.Module, channels: int, size: Size | None, own: Size) -> bool:
    """Whether the model takes images of a size: its own, or another that it resizes its position tables for."""
    if size is None or size == own:
        return size is not None
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            module(torch.zeros(1, channels, *size, device=device))
    except Exception:  # a model refuses a size in any way
        return False
    return True


def as_stored(spec: ArchSpec, state: Mapping[str, torch.Tensor]) -> ArchSpec:
    """`image_size=` as the size of the images alone, where the weights are of the config's size.

    The config then keeps the size that its position tables have, and the model resizes them as it runs.

    Raises:
        GpusqError: The library refuses the config or the size.
    """
    if spec.source != "transformers" or not {"config", "image_size"} <= spec.arguments.keys():
        return spec
    arguments = {name: value for name, value in spec.arguments.items() if name != "image_size"}
    without = ArchSpec(source=spec.source, name=spec.name, arguments=arguments)
    images = ArchSpec(
        source=spec.source, name=spec.name, arguments={**arguments, "input_size": _pair(spec.arguments["image_size"])}
    )
    with offline(), refusals(spec), torch.device("meta"):
        stored = config_of(without)
        if not hasattr(stored, "image_size") and hasattr(stored, "vision_config"):
            return images
        kind: Any = class_of_images(spec)
        asked, kept = (dict(kind(config_of(one)).state_dict()) for one in (spec, without))
    tables = {_tail(name): tensor.shape for name, tensor in kept.items() if asked[name].shape != tensor.shape}
    return images if any(tensor.shape == tables.get(_tail(name)) for name, tensor in state.items()) else spec


def _pair(size: Any) -> Any:
    return [size, size] if isinstance(size, int) else size


def _tail(name: str) -> str:
    """What older and newer names of a tensor share."""
    return ".".join(name.split(".")[-2:])


def size_said(spec: ArchSpec, chosen: Preprocessing, preprocessor: Mapping[str, Any] | None) -> Iterator[str]:
    """What is said where the config, the preprocessor and the size that is built differ."""
    own = size_of_config(config_of(spec))
    size = (chosen.height, chosen.width)
    prepared = None if preprocessor is None else prepared_size(_completed(preprocessor))
    asked = bool({"input_size", "image_size"} & spec.arguments.keys())
    resized = "" if own in (None, size) else f"; position tables are resized from the config's {_shown(own)}"
    if prepared not in (None, size):
        why = "as asked" if asked else "the config's size, for the model doesn't run at another"
        yield f"built for {_shown(size)}, {why}; {PREPROCESSOR} prepares images of {_shown(prepared)}{resized}"
    elif resized and not asked:
        way = f"--arch-arg image_size={own[0] if own[0] == own[1] else list(own)}" if own else ""
        yield f"built for {_shown(size)}, as {PREPROCESSOR} prepares images{resized} ({way} builds for that)"
    elif resized:
        yield f"built for {_shown(size)}, as asked{resized}"


def steps_said(chosen: Preprocessing, preprocessor: Mapping[str, Any] | None) -> Iterator[str]:
    """What is said of a preprocessor that does otherwise than what is done here, or may."""
    if preprocessor is None:
        return
    completed = _completed(preprocessor)
    name, varying = completed["image_processor_type"], sizes_vary(completed)
    if varying:
        size = _shown((chosen.height, chosen.width))
        yield (
            f"{PREPROCESSOR} gives images of many sizes: {varying}; here each is resized to cover {size}, and the "
            "centre is taken"
        )
    elif name and name not in COMPARED:
        yield (
            f"WARNING: images are resized, cropped and normalised as {PREPROCESSOR} says; whether {name} does more was "
            "not compared"
        )


def _shown(size: Size | None) -> str:
    return "no one size" if size is None else f"{size[0]} x {size[1]}"


def _said(config: Any, name: str, *within: str) -> Any:
    """An entry of a config, or of the first of its named parts that has it; None where none has."""
    for part in (config, *(getattr(config, part, None) for part in within)):
        value: Any = getattr(part, name, None)
        if value is not None:
            return value
    return None


def _normalised_by(preprocessor: Mapping[str, Any], name: str, plain: float, channels: int) -> tuple[float, ...]:
    if preprocessor.get("do_normalize") is False:
        return (plain,) * channels
    return per_channel(preprocessor[name], channels)


def per_channel(declared: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number per channel, or their mean for every channel of a model that has another number of them."""
    values = [float(value) for value in declared]
    if not values:
        raise ValueError("a mean or std without a number")
    return tuple(values if len(values) == channels else [sum(values) / len(values)] * channels)
