"""PEFT's adapters beside their base weights.

    LAYER.base_layer.weight, LAYER.lora_A.NAME.weight, LAYER.lora_B.NAME.weight
    LAYER.original_module.…, LAYER.modules_to_save.NAME.…

1. A layer computes (W + s * B A) x with s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora. Where the file
   holds a LoraConfig's entries as plain values, W + s * B A is read.
2. Adapters whose B is zero do nothing: W is read, whatever s is.
3. `modules_to_save` replace their `original_module`, as PEFT does.
4. Anything else (DoRA, IA3, several adapters, an adapter without its base) is refused: PEFT merges it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from gpusq_deploy.frontend.checkpoint.adapters.reading import Reading
from gpusq_deploy.frontend.checkpoint.adapters.refusal import ForeignFormatError
from gpusq_deploy.text import counted, some

PRODUCER = "PEFT"
_FACTOR = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
_SAVED = re.compile(r"(?P<layer>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<field>.+)")
_BASE = ".base_layer."
_ORIGINAL = ".original_module."
_OTHER = re.compile(
    r".+\.(?:lora_(?:magnitude_vector|embedding_[AB]|E|ranknum)|ia3_l|hada_w\d_[ab]|lokr_\w+|oft_\w+|boft_\w+|vera_\w+|"
    r"vblora_\w+|randlora_\w+|hra_u|lora_[AB]\.(?:[^.]+\.)?bias)(?:\..+)?"
)
# A config lies this deep in a training script's file, at most.
_DEPTH = 3
_MERGE = "merge them with PEFT and save the result: model.merge_and_unload().state_dict()"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Adapter:
    """A layer's base weight and the two factors, by the file's names."""

    layer: str
    base: str
    down: str
    up: str


def is_peft(name: str) -> bool:
    """Whether a tensor is, by its name, of an adapter or of what one stands beside."""
    return _BASE in name or _ORIGINAL in name or any(kind.fullmatch(name) for kind in (_FACTOR, _SAVED, _OTHER))


def read_peft(reading: Reading, content: Mapping[str, Any], *, place: str) -> Reading:
    """Merge the adapters that can be merged; see the module's rules. What can't is the reading's `problem`."""
    if not any(is_peft(name) for name in reading.state):
        return reading
    try:
        _require_known_kind(reading.state, place)
        adapters = list(_adapters(reading.state, place))
        acting = [adapter for adapter in adapters if bool(reading.state[adapter.up].any())]
        sums = _sums(reading.state, acting, content, place)
    except ForeignFormatError as error:
        return replace(reading, problem=error)
    factors = {name for adapter in adapters for name in (adapter.down, adapter.up)}
    replaced = {_ORIGINAL.join((match["layer"], match["field"])) for match in _matches(_SAVED, reading.state)}
    state = {
        _own_name(name): sums.get(name, tensor)
        for name, tensor in reading.state.items()
        if name not in factors and name not in replaced
    }
    merged = [f"{PRODUCER}: {counted(len(acting), 'low-rank adapter')} merged into the base weights"] if acting else []
    unused = list(_unused([adapter.layer for adapter in adapters if adapter not in acting], sorted(replaced)))
    return replace(
        reading,
        state=state,
        remarks=(*reading.remarks, *merged, *unused),
        unused=(*reading.unused, *unused),
        producers=(*reading.producers, PRODUCER),
    )


def _unused(idle: list[str], replaced: list[str]) -> Iterator[str]:
    if idle:
        yield f"{PRODUCER}: adapters are zero and left out: {some(idle)}"
    if replaced:
        yield f"{PRODUCER}: left out for the trained copies beside them: {some(replaced)}"


def _matches(kind: re.Pattern[str], names: Mapping[str, object]) -> Iterator[re.Match[str]]:
    return (match for name in names if (match := kind.fullmatch(name)) is not None)


def _own_name(name: str) -> str:
    """The base model's name of a tensor."""
    match = _SAVED.fullmatch(name)
    return f"{match['layer']}.{match['field']}" if match else name.replace(_BASE, ".").replace(_ORIGINAL, ".")


def _refused(what: str, place: str, hint: str = _MERGE) -> ForeignFormatError:
    return ForeignFormatError(f"{PRODUCER}: {what}", place=place, hint=hint, producer=PRODUCER)


def _require_known_kind(state: Mapping[str, torch.Tensor], place: str) -> None:
    other = [name for name in state if _OTHER.fullmatch(name)]
    if other:
        raise _refused(f"adapters of another kind than two low-rank factors: {some(other)}", f"{place}, {other[0]}")
    names = {match["adapter"] or "" for kind in (_FACTOR, _SAVED) for match in _matches(kind, state)}
    if len(names) > 1:
        raise _refused(f"{len(names)} adapters, and the file doesn't say which is on: {some(sorted(names))}", place)


def _adapters(state: Mapping[str, torch.Tensor], place: str) -> Iterator[_Adapter]:
    for match in _matches(_FACTOR, state):
        if match["part"] != "A":
            continue
        down, layer = match.string, match["layer"]
        up = down.replace(".lora_A.", ".lora_B.")
        base = next((name for name in (f"{layer}{_BASE}weight", f"{layer}.weight") if name in state), None)
        if base is None or up not in state:
            raise _refused(
                "an adapter alone, without the weights that it belongs to",
                f"{place}, {down}",
                "load the base model with it, and save model.merge_and_unload().state_dict()",
            )
        yield _Adapter(layer=layer, base=base, down=down, up=up)


def _sums(
    state: Mapping[str, torch.Tensor], adapters: list[_Adapter], content: Mapping[str, Any], place: str
) -> dict[str, torch.Tensor]:
    """W + s * B A by the name of W."""
    if not adapters:
        return {}
    configs = [config for config in _configs(content, _DEPTH) if isinstance(config["lora_alpha"], (int, float))]
    told = {(float(config["lora_alpha"]), config.get("use_rslora") is True) for config in configs}
    if len(told) != 1 or any(config.get("alpha_pattern") for config in configs):
        raise _refused(
            f"{counted(len(adapters), 'low-rank adapter')} beside base weights, and the file doesn't say lora_alpha",
            f"{place}, {adapters[0].down}",
        )
    alpha, stabilised = told.pop()
    return {adapter.base: _sum(state, adapter, alpha, place, stabilised=stabilised) for adapter in adapters}


def _configs(content: Mapping[str, Any], depth: int) -> list[Mapping[str, Any]]:
    """Mappings of the file that hold a LoraConfig's entries."""
    found = [content] if "lora_alpha" in content else []
    for value in content.values() if depth > 1 else ():
        if isinstance(value, Mapping):
            found += _configs(cast("Mapping[str, Any]", value), depth - 1)
    return found


def _sum(
    state: Mapping[str, torch.Tensor], adapter: _Adapter, alpha: float, place: str, *, stabilised: bool
) -> torch.Tensor:
    """W + s * B A in float32, in W's type; of a convolution B is 1 x 1."""
    base, down, up = (state[name] for name in (adapter.base, adapter.down, adapter.up))
    rank = down.shape[0] if down.ndim else 0
    fits = rank > 0 and up.ndim > 1 and up.shape[:2] == (base.shape[0], rank) and up[0].numel() == rank
    if not (fits and down.shape[1:] == base.shape[1:]):
        shapes = f"factors of {list(down.shape)} and {list(up.shape)}"
        raise _refused(f"{shapes} don't make a weight of {list(base.shape)}", f"{place}, {adapter.down}")
    scale = alpha / (math.sqrt(rank) if stabilised else rank)
    product = up.float().flatten(1) @ down.float().flatten(1)
    return (base.float() + scale * product.reshape(base.shape)).to(base.dtype)
