"""Channels of a model whose order is free, and putting them into another order.

Rules, each of which reads names and shapes and nothing else. What they find is proven by running the model before and
after (gpusq_deploy.compile.repair), so a module that is called the same but computes otherwise is caught there.

1. Hidden channels of an MLP: rows of the first Linear, its bias, a norm's weights, columns of the second. Where the
   first is twice as wide, its halves are a gate and a value: channels move in both alike.
2. Value channels of attention, within a head: rows and bias of the value projection, columns of the output projection.
3. The residual stream; see `gpusq_deploy.sparsity.permutation.residual_stream`.

Declined, with a reason: shared tensors, heads that aren't whole groups of four, parameters or norms that no rule knows.
Query and key channels could move as pairs, but no weight contracts over them: that would change no group.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch

from gpusq_deploy.artifacts import ChannelAxis, ChannelKind, Channels, Declined
from gpusq_deploy.sparsity.permutation.module_parts import ModuleParts, free_channels, joined, left_alone
from gpusq_deploy.sparsity.permutation.residual_stream import stream_channels

Tensors = Mapping[str, torch.Tensor]


class _Names(NamedTuple):
    """Children of a module by their dotted names. `alone`: it has no other child with parameters but norms."""

    writers: tuple[str, ...]
    reader: str
    alone: bool = True


_MLPS = (
    _Names(("fc1",), "fc2"),
    _Names(("fc1_g", "fc1_x"), "fc2"),
    _Names(("w12",), "w3"),
    _Names(("w1", "w2"), "w3"),
    _Names(("intermediate.dense",), "output.dense", alone=False),
)
_ATTENTIONS = (
    _Names(("qkv",), "proj"),
    _Names(("v_proj",), "proj"),
    _Names(("v_proj",), "out_proj"),
    _Names(("v_proj",), "o_proj"),
    _Names(("attention.value",), "output.dense"),
)
# What an attention may hold beside value and output: it acts on queries, keys and scores alone, or per head.
_BESIDE_VALUES = (
    "q_proj*",
    "k_proj*",
    "q_norm*",
    "k_norm*",
    "attention.query*",
    "attention.key*",
    "q_bias",
    "k_bias",
    "logit_scale",
    "relative_position_bias_table",
    "relative_position_bias.*",
    "cpb_mlp.*",
    "rel_pos*",
)
# Tensors of the value projection that timm keeps beside it.
_VALUE_BIASES = ("v_bias",)


def find_channels(module: torch.nn.Module) -> tuple[tuple[Channels, ...], tuple[Declined, ...]]:
    """Every set of channels that may be permuted, and those that may not, with the reason.

    Args:
        module: The model.
    """
    model = ModuleParts(module)
    found: list[Channels] = []
    declined: list[Declined] = []
    for answer in _answers(model):
        shared = _shared(model, answer) if isinstance(answer, Channels) else None
        if isinstance(answer, Declined):
            declined.append(answer)
        elif shared is not None:
            declined.append(left_alone(answer.kind, answer.place, shared))
        else:
            found.append(answer)
    return tuple(found), tuple(declined)


def permute_channels(tensors: Tensors, channels: Channels, order: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors with their channels in another order; those that hold none of them are handed on as they are.

    Args:
        tensors: Tensors by name, any type.
        channels: Which channels.
        order: int64 [size]; the channel that comes to place i is `order[i]`.
    """
    result = dict(tensors)
    for axis in channels.axes:
        old = result[axis.tensor]
        index = torch.arange(old.shape[axis.dim])
        index[axis.start : axis.start + channels.size] = axis.start + order
        result[axis.tensor] = old.index_select(axis.dim, index)
    return result


def _answers(model: ModuleParts) -> Iterator[Channels | Declined]:
    for place, module in model.modules.items():
        for rule in (_fused_attention, _attention, _sequential, _mlp):
            answer = rule(model, place, module)
            if answer is not None:
                yield answer
    yield stream_channels(model)


def _shared(model: ModuleParts, channels: Channels) -> str | None:
    for axis in channels.axes:
        owners = model.owners[model.parameters[axis.tensor].untyped_storage().data_ptr()]
        if len(owners) > 1:
            return f"{axis.tensor} is shared: it is also {', '.join(name for name in owners if name != axis.tensor)}"
    return None


def _mlp(model: ModuleParts, place: str, _module: torch.nn.Module) -> Channels | Declined | None:
    for names in _MLPS:
        writers = [model.linear(place, name) for name in names.writers]
        reader = model.linear(place, names.reader)
        if reader is not None and all(writer is not None for writer in writers):
            return _hidden(model, place, names)
    return None


def _hidden(model: ModuleParts, place: str, names: _Names) -> Channels | Declined:
    size = _reader(model, place, names).in_features
    axes = [ChannelAxis(tensor=f"{joined(place, names.reader)}.weight", dim=1)]
    for name in names.writers:
        rows = int(model.parameters[f"{joined(place, name)}.weight"].shape[0])
        halves = 2 if len(names.writers) == 1 and rows == 2 * size else 1
        if rows != halves * size:
            return left_alone("hidden channels", place, f"{name} makes {rows} channels, {names.reader} reads {size}")
        axes += _rows(model, joined(place, name), [half * size for half in range(halves)])
    if names.alone:
        norms = _norms(model, place, names, size, beside=())
        if isinstance(norms, Declined):
            return norms
        axes += norms
    return free_channels("hidden channels", place, size, size, axes, joined(place, names.reader))


def _attention(model: ModuleParts, place: str, module: torch.nn.Module) -> Channels | Declined | None:
    names = next(
        (
            names
            for names in _ATTENTIONS
            if model.linear(place, names.reader) is not None and model.linear(place, names.writers[0]) is not None
        ),
        None,
    )
    heads = _head_count(module)
    if names is None or isinstance(module, torch.nn.MultiheadAttention) or heads is None:
        return None
    size = _reader(model, place, names).in_features
    writer = joined(place, names.writers[0])
    rows = int(model.parameters[f"{writer}.weight"].shape[0])
    packed = names.writers == ("qkv",)
    if size % heads or rows != (3 * size if packed else size):
        why = f"{names.writers[0]} makes {rows} channels, {names.reader} reads {size} in {heads} heads"
        return left_alone("value channels", place, why)
    axes = [ChannelAxis(tensor=f"{joined(place, names.reader)}.weight", dim=1)]
    axes += _rows(model, writer, [2 * size if packed else 0])
    axes += [
        ChannelAxis(tensor=joined(place, name), dim=0)
        for name in _VALUE_BIASES
        if joined(place, name) in model.parameters
    ]
    norms = _norms(model, place, names, size, beside=(*_BESIDE_VALUES, *_VALUE_BIASES))
    if isinstance(norms, Declined):
        return norms
    return free_channels("value channels", place, size, size // heads, [*axes, *norms], joined(place, names.reader))


def _fused_attention(model: ModuleParts, place: str, module: torch.nn.Module) -> Channels | Declined | None:
    if not isinstance(module, torch.nn.MultiheadAttention):
        return None
    size, heads = int(cast("int", module.embed_dim)), int(cast("int", module.num_heads))
    if module.bias_v is not None or joined(place, "in_proj_weight") not in model.parameters:
        return left_alone("value channels", place, "its values come from more than one packed projection")
    axes = [ChannelAxis(tensor=joined(place, "out_proj.weight"), dim=1)]
    axes += [
        ChannelAxis(tensor=joined(place, name), dim=0, start=2 * size)
        for name in ("in_proj_weight", "in_proj_bias")
        if joined(place, name) in model.parameters
    ]
    return free_channels("value channels", place, size, size // heads, axes, joined(place, "out_proj"))


def _sequential(model: ModuleParts, place: str, module: torch.nn.Module) -> Channels | Declined | None:
    """Two Linears and nothing else that has parameters: torchvision's MLPs."""
    if not isinstance(module, torch.nn.Sequential):
        return None
    layers = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
    if len(layers) != 2 or any(model.linear(place, name) is None for name in layers):
        return None
    return _hidden(model, place, _Names((layers[0],), layers[1]))


def _reader(model: ModuleParts, place: str, names: _Names) -> torch.nn.Linear:
    found = model.linear(place, names.reader)
    assert found is not None
    return found


def _head_count(module: torch.nn.Module) -> int | None:
    for holder in (module, getattr(module, "attention", None)):
        for name in ("num_heads", "num_attention_heads"):
            count = getattr(holder, name, None)
            if isinstance(count, int) and count > 0:
                return count
    return None


def _rows(model: ModuleParts, layer: str, starts: Sequence[int]) -> list[ChannelAxis]:
    """Rows of a Linear and its bias."""
    names = [name for name in (f"{layer}.weight", f"{layer}.bias") if name in model.parameters]
    return [ChannelAxis(tensor=name, dim=0, start=start) for start in starts for name in names]


def _norms(
    model: ModuleParts, place: str, names: _Names, size: int, *, beside: Sequence[str]
) -> list[ChannelAxis] | Declined:
    """Weights of norms over the channels. Anything else that has parameters, and isn't known, is declined."""
    known = tuple(f"{name}.*" for name in (*names.writers, names.reader))
    axes: list[ChannelAxis] = []
    for name, parameter in model.below(place).items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in (*known, *beside)):
            continue
        if not fnmatch.fnmatchcase(name, "norm.*") or tuple(parameter.shape) != (size,):
            kind: ChannelKind = "value channels" if beside else "hidden channels"
            return left_alone(kind, place, f"no rule knows what its {name} does to the channels")
        axes.append(ChannelAxis(tensor=joined(place, name), dim=0))
    return axes
