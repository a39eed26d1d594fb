"""Models of the transformers library by class name, as modules from an image to tensors. Nothing is ever downloaded.

What a model answers:

1. With logits: `logits`, and the `pred_boxes` and `pred_masks` of a detector behind them.
2. Else `image_embeds`, of a vision tower with its projection; else `last_hidden_state`, and of a vision tower the
   `pooler_output` that embeds the image; else `feature_maps`, of a backbone; else `predicted_depth`.

Attention runs as written out (`eager`): products and a softmax, which every other part here reads.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch

from gpusq_deploy.artifacts import ArchSpec, Preprocessing
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.optional_libraries import library, told
from gpusq_deploy.frontend.checkpoint.pretrained_folder import parsed_config
from gpusq_deploy.text import one_line

INSTALL = "pip install 'gpusq-deploy[transformers]'"
_ANSWERS = (
    ("logits", "pred_boxes", "pred_masks"),
    ("image_embeds",),
    ("last_hidden_state", "pooler_output"),
    ("feature_maps",),
    ("predicted_depth",),
)
# Arguments that are ours, not the config's.
_OURS = frozenset({"config", "input_size"})
# Methods of the classes made here: all that the library's class answers, and what the graph has of it, by name.
WHOLE = "gpusq_whole_answer"
NAMED = "gpusq_named_answers"


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


def answers_left_out(spec: ArchSpec, size: Preprocessing) -> list[str]:
    """Tensors that the class answers and the module here doesn't; empty where it can't be run without values."""
    with offline(), torch.no_grad():
        try:
            with torch.device("meta"):
                module = class_of_images(spec)(config_of(spec)).eval()
                shape = (1, size.channels, size.height, size.width)
                answer: Any = getattr(module, WHOLE)(torch.empty(shape))
        except Exception:  # a model may look at its values in any way, and then this says nothing
            return []
    taken = _taken(answer, spec)
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
    return library(name, hint=INSTALL)


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

    resizes = "interpolate_pos_encoding" in inspect.signature(parent.forward).parameters

    def whole_answer(self: Any, pixel_values: torch.Tensor) -> Any:
        other = resizes and tuple(pixel_values.shape[-2:]) != size_of_config(self.config)
        return parent.forward(self, pixel_values=pixel_values, **({"interpolate_pos_encoding": True} if other else {}))

    def named_answers(self: Any, pixel_values: torch.Tensor) -> dict[str, Any]:
        return _taken(whole_answer(self, pixel_values), spec)

    def forward(self: torch.nn.Module, pixel_values: torch.Tensor) -> Any:
        return _tensors(named_answers(self, pixel_values))

    methods = {WHOLE: whole_answer, NAMED: named_answers, "forward": forward}
    return type(spec.name, (parent,), {**methods, "__module__": parent.__module__})


def size_of_config(config: Any) -> tuple[int, int] | None:
    """Height and width that a config, or its `vision_config`, says a model is of; None where it says none."""
    for part in (config, getattr(config, "vision_config", None)):
        size = size_of(getattr(part, "image_size", None))
        if size is not None:
            return size
    return None


def size_of(said: Any) -> tuple[int, int] | None:
    """Height and width of a number, a pair, or a mapping of both."""
    if isinstance(said, int):
        return said, said
    if isinstance(said, (list, tuple)):
        sides = cast("list[Any]", said)
        return (int(sides[0]), int(sides[1])) if len(sides) == 2 else None
    named: Mapping[str, Any] = cast("Mapping[str, Any]", said) if isinstance(said, Mapping) else {}
    return (int(named["height"]), int(named["width"])) if {"height", "width"} <= named.keys() else None


def _tensors(answers: Mapping[str, Any]) -> Any:
    """The tensors of named answers; one alone is not in a tuple."""
    first: Any = next(iter(answers.values()))
    if isinstance(first, (tuple, list)):
        return tuple(cast("tuple[torch.Tensor, ...]", first))
    return first if len(answers) == 1 else tuple(answers.values())


def _is_read(name: str, spec: ArchSpec) -> bool:
    """A pooled output of others than vision towers is often untrained."""
    kind: Any = getattr(_import("transformers"), spec.name).config_class
    return name != "pooler_output" or kind.base_config_key == "vision_config"


def _taken(answer: Any, spec: ArchSpec) -> dict[str, Any]:
    """What the graph has of what the model answers."""
    for names in _ANSWERS:
        if answer.get(names[0]) is not None:
            return {name: answer[name] for name in names if answer.get(name) is not None and _is_read(name, spec)}
    known = ", ".join(names[0] for names in _ANSWERS)
    raise GpusqError(
        f"the model answers {', '.join(answer)}: none of {known}",
        place=str(spec),
        hint="wrap it in a factory that returns tensors: package.module:factory",
    )


def is_part_of_config(spec: ArchSpec) -> bool:
    """Whether the class is of a part of what its config is of, as CLIP's vision tower is of CLIP."""
    kind: Any = getattr(_import("transformers"), spec.name, None) if spec.source == "transformers" else None
    if kind is None or "config" not in spec.arguments:
        return False
    given = parsed_config(str(spec.arguments["config"]), place=f"{spec}, config")
    return _own_part(given, kind.config_class) is not given


def whole_of(spec: ArchSpec) -> ArchSpec | None:
    """The class that the config names, of which the spec's is a part; None where it names none."""
    given = parsed_config(str(spec.arguments["config"]), place=f"{spec}, config")
    named: Any = (given.get("architectures") or [None])[0]
    if not isinstance(getattr(_import("transformers"), str(named), None), type):
        return None
    return ArchSpec(source="transformers", name=str(named), arguments={"config": spec.arguments["config"]})


def _own_part(given: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The part of a config of several models that is of a class's kind; the config itself where there is no such part.

    Published ones don't always say a part's type; transformers goes by the part's place then.
    """
    stated = str(given.get("model_type", kind.model_type))
    if stated == kind.model_type:
        return given
    for name, part in given.items():
        usual = kind.model_type if name == kind.base_config_key and kind.model_type.startswith(stated) else None
        if name.endswith("_config") and isinstance(part, dict):
            found = cast("dict[str, Any]", part)
            if found.get("model_type", usual) == kind.model_type:
                return found
    return given


def config_of(spec: ArchSpec) -> Any:
    """The class's config with the spec's arguments.

    Raises:
        GpusqError: Of another class, quantised, or without such a key.
    """
    kind: Any = getattr(_import("transformers"), spec.name).config_class
    given: dict[str, Any] = {}
    if "config" in spec.arguments:
        given = parsed_config(str(spec.arguments["config"]), place=f"{spec}, config")
    whole, given = given, _own_part(given, kind)
    stated = given.get("model_type", kind.model_type)
    if stated != kind.model_type:
        raise GpusqError(
            f"the config is of a {stated}, the class of a {kind.model_type}",
            place=str(spec),
            hint="check --arch and the config's model_type",
        )
    quantised: Any = whole.get("quantization_config") or given.get("quantization_config")
    if quantised:
        held = cast("dict[str, object]", quantised) if isinstance(quantised, dict) else {}
        by = f" by {held['quant_method']}" if "quant_method" in held else ""
        raise GpusqError(
            f"the config says that the weights are quantised{by}, in a format that isn't supported",
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
        pair = isinstance(value, int) and isinstance(getattr(config, name), (list, tuple)) and name == "image_size"
        setattr(config, name, [value, value] if pair else value)
    if hasattr(config, "use_pretrained_backbone"):
        config.use_pretrained_backbone = False
    config._attn_implementation = "eager"  # the config's only way to say it; nested ones follow
    return config
