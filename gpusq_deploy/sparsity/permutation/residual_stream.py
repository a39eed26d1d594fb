"""The residual stream: every writer's rows, every reader's columns, norms, scales, tokens and positions.

Only where a head reads it, and only where every parameter of the model is known to touch it or not to (`_STREAMS`).
"""

from __future__ import annotations

import fnmatch
from typing import NamedTuple

from gpusq_deploy.artifacts import ChannelAxis, Channels, Declined
from gpusq_deploy.frontend import layer_of
from gpusq_deploy.sparsity.permutation.module_parts import ModuleParts, free_channels, left_alone


class _Stream(NamedTuple):
    """One architecture's residual stream: the axis of the first pattern that matches; None: it isn't touched."""

    mark: str
    head: str
    axes: tuple[tuple[str, int | None], ...]


_STREAMS = (
    _Stream(
        mark="blocks.*.attn.qkv.weight",
        head="head*.weight",
        axes=(
            ("*_token", 2),
            ("pos_embed", 2),
            ("patch_embed.proj.*", 0),
            ("patch_embed.norm.*", 0),
            ("blocks.*.attn.qkv.weight", 1),
            ("blocks.*.attn.qkv.bias", None),
            ("blocks.*.attn.?_norm.*", None),
            ("blocks.*.attn.norm.*", None),
            ("blocks.*.attn.proj.*", 0),
            ("blocks.*.ls?.gamma", 0),
            ("blocks.*.mlp.fc1*.weight", 1),
            ("blocks.*.mlp.fc1*.bias", None),
            ("blocks.*.mlp.norm.*", None),
            ("blocks.*.mlp.fc2.*", 0),
            ("blocks.*.norm?.*", 0),
            ("norm.*", 0),
            ("norm_pre.*", 0),
            ("fc_norm.*", 0),
            ("head*.weight", 1),
            ("head*.bias", None),
        ),
    ),
    _Stream(
        mark="encoder.layers.*.self_attention.in_proj_weight",
        head="heads.*.weight",
        axes=(
            ("class_token", 2),
            ("conv_proj.*", 0),
            ("encoder.pos_embedding", 2),
            ("encoder.layers.*.ln_?.*", 0),
            ("encoder.layers.*.self_attention.in_proj_weight", 1),
            ("encoder.layers.*.self_attention.in_proj_bias", None),
            ("encoder.layers.*.self_attention.out_proj.*", 0),
            ("encoder.layers.*.mlp.0.weight", 1),
            ("encoder.layers.*.mlp.0.bias", None),
            ("encoder.layers.*.mlp.3.*", 0),
            ("encoder.ln.*", 0),
            ("heads.head.weight", 1),
            ("heads.head.bias", None),
        ),
    ),
    _Stream(
        mark="vit.layers.*.attention.q_proj.weight",
        head="classifier.weight",
        axes=(
            ("vit.embeddings.*_token", 2),
            ("vit.embeddings.position_embeddings", 2),
            ("vit.embeddings.patch_embeddings.projection.*", 0),
            ("vit.layers.*.layernorm_*", 0),
            ("vit.layers.*.attention.o_proj.*", 0),
            ("vit.layers.*.attention.?_proj.bias", None),
            ("vit.layers.*.attention.?_proj.weight", 1),
            ("vit.layers.*.mlp.fc1.weight", 1),
            ("vit.layers.*.mlp.fc1.bias", None),
            ("vit.layers.*.mlp.fc2.*", 0),
            ("vit.layernorm.*", 0),
            ("classifier.weight", 1),
            ("classifier.bias", None),
        ),
    ),
)


def stream_channels(model: ModuleParts) -> Channels | Declined:
    """The channels of the model's residual stream, or why they aren't free."""
    stream = next((stream for stream in _STREAMS if fnmatch.filter(model.parameters, stream.mark)), None)
    if stream is None:
        return left_alone("residual stream", "", "no rule knows this architecture's residual stream")
    if not fnmatch.filter(model.parameters, stream.head):
        return left_alone("residual stream", "", "no head reads it: the model's output is the residual stream itself")
    axes: list[ChannelAxis] = []
    for name in model.parameters:
        match = next((dim for pattern, dim in stream.axes if fnmatch.fnmatchcase(name, pattern)), -1)
        if match == -1:
            return left_alone("residual stream", "", f"no rule knows what {name} does to it")
        if match is not None:
            axes.append(ChannelAxis(tensor=name, dim=match))
    size = int(model.parameters[fnmatch.filter(model.parameters, stream.mark)[0]].shape[1])
    for axis in axes:
        shape = tuple(model.parameters[axis.tensor].shape)
        if axis.dim >= len(shape) or shape[axis.dim] != size:
            return left_alone(
                "residual stream", "", f"{axis.tensor} is {list(shape)}, which doesn't fit {size} channels"
            )
    readers = [layer_of(axis.tensor) for axis in axes if axis.dim == 1]
    return free_channels("residual stream", "", size, size, axes, *readers)
