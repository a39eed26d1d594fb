"""Position tables of another image size, resized as the model's own library resizes them when it loads weights.

Only where the size was asked for by name (`img_size=`, `image_size=`): a table of another size than the architecture's
is otherwise an error, whose hint names the size. transformers' models resize theirs whenever they run.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from gpusq_deploy.artifacts import ArchSpec
from gpusq_deploy.text import counted, some

State = Mapping[str, torch.Tensor]

_SIZES = {"timm": ("img_size", "window_size"), "torchvision": ("image_size",)}
# `pos_embed`, `pos_embedding`, `rel_pos_h`, `relative_position_bias_table`, `attention_biases`.
_TABLE = re.compile(r"(?:.*_)?pos(?:ition)?(?:_.*)?|attention_biases|.*bias_table")


def resized_positions(arch: ArchSpec, state: State, expected: State) -> tuple[State, tuple[str, ...]]:
    """The weights with position tables of the architecture's size, and a remark on those that were resized.

    Args:
        arch: The architecture; its arguments name the size, or nothing is resized.
        state: Weights by the architecture's names.
        expected: The state dict of the architecture's module, of which shapes count.

    Returns:
        The weights as they are where the library can't load them: the caller refuses what doesn't fit.
    """
    if not any(name in arch.arguments for name in _SIZES.get(arch.source, ())):
        return state, ()
    differing = [name for name, tensor in expected.items() if name in state and state[name].shape != tensor.shape]
    tables = [name for name in differing if _TABLE.fullmatch(name.rpartition(".")[2])]
    if not tables or tables != differing:
        return state, ()
    resized = _by_library(arch, state)
    fitting = {name: resized[name] for name in tables if name in resized}
    if any(fitting[name].shape != expected[name].shape for name in fitting) or len(fitting) != len(tables):
        return state, ()
    shapes = f"{list(state[tables[0]].shape)} to {list(fitting[tables[0]].shape)}"
    said = f"{arch.source} resized {counted(len(tables), 'position table')} from {shapes}: {some(tables)}"
    return {**state, **fitting}, (said,)


def _by_library(arch: ArchSpec, state: State) -> State:
    """The weights as the architecture's library resizes them; none where it can't load them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's remarks on its own internals
            return _LOADERS[arch.source](arch, state)
    except Exception:  # others' code, on weights that may be of any architecture: the caller says what doesn't fit
        return {}


def _by_timm(arch: ArchSpec, state: State) -> State:
    """As `create_model(pretrained=True)` loads weights: through the filter of the model's family."""
    timm: Any = importlib.import_module("timm")
    plain = timm.create_model(arch.name, pretrained=False, **arch.arguments)
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    # A head of other classes, or one class more, would be cut: what is loaded is what the file holds, or nothing.
    overlay = {"state_dict": floats, "source": "", "num_classes": plain.num_classes, "label_offset": 0}
    loaded = timm.create_model(arch.name, pretrained=True, pretrained_cfg_overlay=overlay, **arch.arguments)
    return cast("State", loaded.state_dict())


def _by_torchvision(arch: ArchSpec, state: State) -> State:
    """`interpolate_embeddings`, which torchvision has for its ViTs."""
    vision: Any = importlib.import_module("torchvision.models.vision_transformer")
    untyped: Any = importlib.import_module("torchvision.models")
    with torch.device("meta"):
        model: Any = untyped.get_model(arch.name, weights=None, **arch.arguments)
    with contextlib.redirect_stdout(io.StringIO()):
        return cast("State", vision.interpolate_embeddings(model.image_size, model.patch_size, dict(state)))


_LOADERS: dict[str, Callable[[ArchSpec, State], State]] = {"timm": _by_timm, "torchvision": _by_torchvision}
