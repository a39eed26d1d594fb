"""Models of the transformers library by class name, as modules from an image to tensors. Nothing is ever downloaded.

What a model answers:

1. With logits: `logits`, and the `pred_boxes` and `pred_masks` of a detector behind them.
2. Else `last_hidden_state` alone; else `feature_maps`, of a backbone; else `predicted_depth`.

Attention runs as written out (`eager`): products and a softmax, which every other part here reads.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch

from gpusq_deploy.artifacts.arch import ArchSpec, Interpolation, Preprocessing
from gpusq_deploy.checkpoint.libraries import library, told
from gpusq_deploy.checkpoint.saved_folder import PREPROCESSOR, parsed_config
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.wording import one_line

_HINT = "pip install 'gpusq-deploy[transformers]'"
_ANSWERS = (("logits", "pred_boxes", "pred_masks"), ("last_hidden_state",), ("feature_maps",), ("predicted_depth",))
# Arguments that are ours, not the config's.
_OURS = frozenset({"config", "input_size"})
_KEYS = (
    *("image_mean", "image_std", "resample", "size", "crop_size", "do_center_crop", "do_normalize"),
    *("crop_pct", "do_rescale", "rescale_factor", "rescale_offset", "do_flip_channel_order"),
)
# ConvNeXt's processor crops by `crop_pct` below this size, and squeezes from there on.
_CROPPED_BELOW = 384
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


def module_from_transformers(spec: ArchSpec) -> torch.nn.Module:
    """The class with random weights; its `forward` takes the image alone and answers a tuple of tensors, or one.

    Raises:
        GpusqError: Unknown class or config key (near ones are suggested), or a model of something else than images.
    """
    with offline():
        module: torch.nn.Module = class_of_images(spec)(config_of(spec))
    return module


def refusals(spec: ArchSpec) -> AbstractContextManager[None]:
    """Constructors are other people's code: a sentence."""
    what = "refuses its arguments" if spec.arguments else "can't be made"
    return told(
        lambda error: f"the architecture {what}: {said_by(error)}",
        place=str(spec),
        hint="check --arch, --arch-arg and the model's config",
    )


def said_by(error: Exception) -> str:
    """What an exception says, in one line; its type too, where that is half of it or all."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if not text or isinstance(error, LookupError) else text


def preprocessing_of_transformers(
    spec: ArchSpec, module: torch.nn.Module, preprocessor: Mapping[str, Any] | None
) -> Preprocessing:
    """The preprocessing of preprocessor_config.json; without one, the defaults of the model's image processor.

    The size is the first that there is of

    1. `input_size=[H, W]`;
    2. the config's `image_size`, or its `vision_config`'s, for a model may refuse any other;
    3. the crop or the size of preprocessor_config.json;
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
        _require_modelled(preprocessor)
        channels = int(_said(config, "num_channels", *_NESTED) or 3)
        height, width = _size(spec, config, preprocessor, stated=origin == PREPROCESSOR)
        return Preprocessing(
            channels=channels,
            height=height,
            width=width,
            mean=_normalised_by(preprocessor, "image_mean", 0.0, channels),
            std=_normalised_by(preprocessor, "image_std", 1.0, channels),
            interpolation=_interpolation(preprocessor),
            crop_fraction=_crop_fraction(preprocessor),
            origin=origin,
        )
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise GpusqError(
            f"its preprocessing isn't one of images to tensors: {_fault(error)}",
            place=f"{spec}, {origin}",
            hint=_mending(spec, stated=origin == PREPROCESSOR),
        ) from error


def _fault(error: Exception) -> str:
    return f"it lacks {error.args[0]}" if isinstance(error, KeyError) else said_by(error)


def _mending(spec: ArchSpec, *, stated: bool) -> str:
    """What to do about a preprocessing that can't be used, by where it comes from."""
    mended = f"mend the {PREPROCESSOR} beside the weights" if stated else f"put its {PREPROCESSOR} beside the weights"
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


def answers_left_out(spec: ArchSpec, size: Preprocessing) -> list[str]:
    """Tensors that the class answers and the module here doesn't; empty where it can't be run without values."""
    with offline(), torch.no_grad():
        try:
            with torch.device("meta"):
                module = class_of_images(spec)(config_of(spec)).eval()
                shape = (1, size.channels, size.height, size.width)
                parent: Any = type(module).__mro__[1]  # the library's own, whose answer has names
                answer: Any = parent.forward(module, pixel_values=torch.empty(shape))
        except Exception:  # a model may look at its values in any way, and then this says nothing
            return []
    taken = next((names for names in _ANSWERS if answer.get(names[0]) is not None), ())
    return [str(name) for name, value in answer.items() if isinstance(value, torch.Tensor) and name not in taken]


@contextmanager
def offline() -> Generator[None]:
    """Whatever a constructor asks of the hub fails, rather than being downloaded; and no progress bars."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    hub, logs = (_import(name) for name in ("huggingface_hub.constants", "transformers.utils.logging"))
    before, level = hub.HF_HUB_OFFLINE, logs.get_verbosity()
    hub.HF_HUB_OFFLINE = True
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
        logs.set_verbosity(level)


def _import(name: str) -> Any:
    return library(name, hint=_HINT)


def class_of_images(spec: ArchSpec) -> Any:
    """The library's class, its `forward` from the image alone to tensors.

    Raises:
        GpusqError: No such class, or one of something else than images.
    """
    transformers = _import("transformers")
    found: Any = getattr(transformers, spec.name, None)
    base: type = transformers.PreTrainedModel
    if not (isinstance(found, type) and issubclass(found, base)) or getattr(found, "config_class", None) is None:
        names = [name for name in dir(transformers) if name.endswith("Model") or "For" in name]
        near = difflib.get_close_matches(spec.name, names, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "name a model class, such as ViTForImageClassification"
        raise GpusqError(f"transformers has no model class called {spec.name!r}", place="--arch", hint=hint)
    parent: Any = found
    if "pixel_values" not in inspect.signature(parent.forward).parameters:
        raise GpusqError(
            "its forward takes no pixel_values: it isn't a model of images", place=str(spec), hint="name another class"
        )

    def forward(self: torch.nn.Module, pixel_values: torch.Tensor) -> Any:
        return _tensors(parent.forward(self, pixel_values=pixel_values), spec)

    return type(spec.name, (parent,), {"forward": forward, "__module__": parent.__module__})


def _tensors(answer: Any, spec: ArchSpec) -> Any:
    """The tensors that the model answers; one alone is not in a tuple."""
    for names in _ANSWERS:
        if answer.get(names[0]) is None:
            continue
        first: Any = answer[names[0]]
        if isinstance(first, (tuple, list)):
            return tuple(cast("tuple[torch.Tensor, ...]", first))
        found = tuple(answer[name] for name in names if answer.get(name) is not None)
        return found[0] if len(found) == 1 else found
    known = ", ".join(names[0] for names in _ANSWERS)
    raise GpusqError(
        f"the model answers {', '.join(answer)}: none of {known}",
        place=str(spec),
        hint="wrap it in a factory that returns tensors: package.module:factory",
    )


def config_of(spec: ArchSpec) -> Any:
    """The class's config with the spec's arguments.

    Raises:
        GpusqError: Of another class, quantised, or without such a key.
    """
    kind: Any = getattr(_import("transformers"), spec.name).config_class
    given: dict[str, Any] = {}
    if "config" in spec.arguments:
        given = parsed_config(str(spec.arguments["config"]), place=f"{spec}, config")
    stated = given.get("model_type", kind.model_type)
    if stated != kind.model_type:
        raise GpusqError(
            f"the config is of a {stated}, the class of a {kind.model_type}",
            place=str(spec),
            hint="check --arch and the config's model_type",
        )
    if given.get("quantization_config"):
        raise GpusqError(
            "the config says that the weights are quantised, in a form that isn't read here",
            place=f"{spec}, config",
            hint="save it dequantised: model.dequantize().save_pretrained(folder)",
        )
    config = kind.from_dict(given)
    for name, value in spec.arguments.items():
        if name in _OURS:
            continue
        if not hasattr(config, name):
            near = difflib.get_close_matches(name, list(config.to_dict()), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}?" if near else f"see {kind.__name__}"
            raise GpusqError(f"the config has no {name!r}", place="--arch-arg", hint=hint)
        setattr(config, name, value)
    if hasattr(config, "use_pretrained_backbone"):
        config.use_pretrained_backbone = False
    config._attn_implementation = "eager"  # the config's only way to say it; nested ones follow
    return config


def _defaults(spec: ArchSpec, kind: str) -> tuple[Mapping[str, Any], str]:
    """The image processor of a kind of model; of a part or a variant, such as `clip_vision_model`, its family's."""
    known: Any = _import("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
    families = [name for name in known if kind == name or kind.startswith((f"{name}_", f"{name}-"))]
    named: Any = known[max(families, key=len)] if families else None
    names = (
        [named]
        if isinstance(named, str)
        else list(cast("Any", named or {}).values() if isinstance(named, dict) else named or ())
    )
    transformers = _import("transformers")
    for name in names:
        processor: Any = getattr(transformers, str(name), None)
        if processor is not None and getattr(processor, "image_mean", None) is not None:
            return {key: getattr(processor, key, None) for key in _KEYS}, f"{DEFAULTS} {name}"
    raise UndeclaredError(
        f"no preprocessing is known for a {kind}",
        place=str(spec),
        hint=f"put its {PREPROCESSOR} beside the weights; {ARRAYS_DO}",
    )


def _size(spec: ArchSpec, config: Any, preprocessor: Mapping[str, Any], *, stated: bool) -> tuple[int, int]:
    """See `preprocessing_of_transformers`; `stated`: the preprocessor is the model's own, not its class's defaults."""
    crop: Any = preprocessor.get("crop_size") if preprocessor.get("do_center_crop") else None
    prepared: tuple[Any, ...] = (crop, preprocessor.get("size"))
    backbone = _said(config, "image_size", "backbone_config")
    rest = (*prepared, backbone) if stated else (backbone, *prepared)
    for size in (spec.arguments.get("input_size"), _said(config, "image_size", "vision_config"), *rest):
        found = _two(size)
        if found is not None:
            return found
    raise UndeclaredError(
        "neither the config nor the preprocessor says one image size",
        place=str(spec),
        hint=f"add --arch-arg input_size=[480,640]; {ARRAYS_DO}",
    )


def _said(config: Any, name: str, *within: str) -> Any:
    """An entry of a config, or of the first of its named parts that has it; None where none has."""
    for part in (config, *(getattr(config, part, None) for part in within)):
        value: Any = getattr(part, name, None)
        if value is not None:
            return value
    return None


def _two(size: Any) -> tuple[int, int] | None:
    """Height and width of a number, a pair, or a mapping of both."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)):
        sides = [int(side) for side in cast("list[Any]", size)]
        return (sides[0], sides[1]) if len(sides) == 2 else None
    named = _mapping(size)
    return (int(named["height"]), int(named["width"])) if {"height", "width"} <= named.keys() else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _crop_fraction(preprocessor: Mapping[str, Any]) -> float:
    """The share of the shorter side that the centre crop keeps; 1 where nothing is cropped."""
    size, crop = preprocessor.get("size"), _two(preprocessor.get("crop_size"))
    named: Any = _mapping(size).get("shortest_edge") if isinstance(size, Mapping) else size
    if preprocessor.get("crop_pct") and isinstance(named, int) and named < _CROPPED_BELOW:
        return float(preprocessor["crop_pct"])
    if not preprocessor.get("do_center_crop") or crop is None:
        return 1.0
    shorter = named if isinstance(named, int) else min(_two(size) or crop)
    return min(1.0, min(crop) / shorter)


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
