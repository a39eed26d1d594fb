"""Where a layer's data is met: a Linear at its own call, a projection of a nn.MultiheadAttention at the attention's.

That module multiplies by `in_proj_weight` (or `q_proj_weight`, `k_proj_weight`, `v_proj_weight`) and by the weight of
its `out_proj` itself: none of them is called. Their inputs are the attention's query, key and value; that of `out_proj`
is what the attention returns with the identity in the place of `out_proj`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch.nn import functional

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import weight_of

_OPERANDS = ("query", "key", "value")
_SINGLE = ("q_proj", "k_proj", "v_proj")

Role = Literal["linear", "in_proj", "q_proj", "k_proj", "v_proj", "out_proj"]


class Read(NamedTuple):
    """Rows of a weight [N, K], and the inputs [..., K] that they multiply."""

    rows: slice
    inputs: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A layer, and the module whose call brings its data: itself, or the attention that holds it."""

    layer: str
    place: str
    role: Role

    def weight(self, module: torch.nn.Module) -> torch.nn.Parameter:
        """The layer's weight [N, K] in `module`."""
        return weight_of(module, self.layer)

    def bias(self, module: torch.nn.Module) -> torch.Tensor | None:
        """The layer's bias [N], a view of the parameter; None where it has none."""
        holder = module.get_submodule(self.layer if self.role in ("linear", "out_proj") else self.place)
        if self.role in ("linear", "out_proj"):
            return cast("torch.Tensor | None", holder.bias)
        packed = cast("torch.Tensor | None", holder.in_proj_bias)
        if packed is None or self.role == "in_proj":
            return packed
        return packed.chunk(3)[_SINGLE.index(self.role)]

    def reads(self, module: torch.nn.Module, args: Sequence[Any], named: Mapping[str, Any]) -> list[Read]:
        """What the layer multiplies when `place` of `module` is called with these arguments."""
        if self.role == "linear":
            return [Read(slice(None), args[0])]
        attention = cast("torch.nn.MultiheadAttention", module.get_submodule(self.place))
        operands: list[torch.Tensor] = [*args[:3], *(named[name] for name in _OPERANDS[len(args) :])]
        if self.role == "out_proj":
            with torch.no_grad(), _identity(attention.out_proj):
                # Not called, for a hook may be asking.
                return [Read(slice(None), attention.forward(*args, **named)[0])]
        if self.role != "in_proj":
            return [Read(slice(None), operands[_SINGLE.index(self.role)])]
        if operands[0] is operands[1] is operands[2]:
            return [Read(slice(None), operands[0])]
        size = int(cast("int", attention.embed_dim))
        return [Read(slice(start * size, (start + 1) * size), operand) for start, operand in enumerate(operands)]

    def outputs(
        self, module: torch.nn.Module, args: Sequence[Any], named: Mapping[str, Any], output: Any
    ) -> list[torch.Tensor]:
        """What it makes of them, in the order of `reads`; `output` is what `place` has returned."""
        if self.role == "linear":
            return [output]
        if self.role == "out_proj":
            return [output[0]]
        weight, bias = self.weight(module), self.bias(module)
        return [
            functional.linear(read.inputs, weight[read.rows], None if bias is None else bias[read.rows])
            for read in self.reads(module, args, named)
        ]


def site_of(module: torch.nn.Module, layer: str) -> Site:
    """Where a layer of that name meets its data.

    Raises:
        GpusqError: The model has no such Linear layer, nor such a projection of a nn.MultiheadAttention.
    """
    holder, _, last = layer.rpartition(".")
    untyped: Any = module  # named_modules() has a partly open type
    modules = cast("dict[str, torch.nn.Module]", dict(untyped.named_modules(remove_duplicate=False)))
    child, parent = modules.get(layer), modules.get(holder)
    if isinstance(parent, torch.nn.MultiheadAttention) and (last == "out_proj" or _is_projection(parent, last)):
        return Site(layer=layer, place=holder, role=cast("Role", last))
    if child is None:
        raise GpusqError("the model has no such layer", place=layer)
    if not isinstance(child, torch.nn.Linear):
        raise GpusqError(f"one-shot pruning takes Linear layers, not a {type(child).__name__}", place=layer)
    return Site(layer=layer, place=layer, role="linear")


def _is_projection(attention: torch.nn.MultiheadAttention, name: str) -> bool:
    return name in ("in_proj", *_SINGLE) and getattr(attention, f"{name}_weight") is not None


@contextmanager
def _identity(linear: torch.nn.Linear) -> Generator[None, None, None]:
    """While it is active, the layer returns what it is given."""
    parameters = dict(linear.named_parameters(recurse=False))
    kept = {name: value.detach().clone() for name, value in parameters.items()}
    try:
        for name, value in parameters.items():
            value.zero_() if name == "bias" else value.copy_(torch.eye(len(value), dtype=value.dtype))
        yield
    finally:
        for name, value in parameters.items():
            value.copy_(kept[name])


@contextmanager
def without_fast_path() -> Generator[None]:
    """While it is active, nn.TransformerEncoderLayer calls its layers in eval mode too."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
