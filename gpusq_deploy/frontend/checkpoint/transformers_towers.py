"""Models of images and text: what they are, and which class is their vision tower."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

from gpusq_deploy.artifacts import ArchSpec
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend.checkpoint.optional_libraries import library
from gpusq_deploy.frontend.checkpoint.transformers_models import INSTALL, config_of

_WRAP = "wrap it in a factory whose forward takes the image and fixes the rest: --arch package.module:factory"


def require_image_alone(spec: ArchSpec) -> None:
    """Refuse a class of transformers that needs more than an image.

    Raises:
        GpusqError: It does; the hint names its vision tower, where it has one.
    """
    kind: Any = getattr(library("transformers", hint=INSTALL), spec.name)
    needed = _needed(kind)
    if needed == ["pixel_values"]:
        return
    towers = _towers(kind, config_of(spec))
    raise GpusqError(
        f"{spec.name} takes more than an image: its forward needs {', '.join(needed)}",
        place=str(spec),
        hint=f"build its vision tower: --arch transformers:{' or transformers:'.join(towers)}" if towers else _WRAP,
    )


def _needed(kind: Any) -> list[str]:
    """What a model's forward can't do without; text is never left out, whatever the signature says."""
    parameters = inspect.signature(kind.forward).parameters.values()
    return [
        found.name
        for found in parameters
        if found.name in {"pixel_values", "input_ids"}
        or (
            found.default is found.empty
            and found.name != "self"
            and found.kind not in {found.VAR_POSITIONAL, found.VAR_KEYWORD}
        )
    ]


def _towers(kind: Any, config: Any) -> list[str]:
    """Classes of the library that are the vision part alone, with the projection to image embeddings first."""
    part: Any = getattr(config, "vision_config", None)
    if part is None:
        return []
    transformers = library("transformers", hint=INSTALL)
    names = [
        name
        for name, found in vars(sys.modules[kind.__module__]).items()
        if isinstance(found, type)
        and issubclass(found, transformers.PreTrainedModel)
        and getattr(found, "config_class", None) is type(part)
        and hasattr(transformers, name)
        and _needed(found) == ["pixel_values"]
    ]
    if not names:
        known: Any = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_MAPPING_NAMES
        named = known.get(getattr(part, "model_type", ""))
        names = [named] if isinstance(named, str) and _needed(getattr(transformers, named)) == ["pixel_values"] else []
    return sorted(names, key=lambda name: (not name.endswith("WithProjection"), name))
