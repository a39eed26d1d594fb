"""Attention over other than four axes, for which torch's ONNX exporter has no translation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_AXES = 4


def _documented(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> None:
    """`scaled_dot_product_attention` as torch documents it: a builtin has no signature of its own."""


_SIGNATURE = inspect.signature(_documented)


class FourAxes(TorchFunctionMode):
    """While it is active, `scaled_dot_product_attention` gets [N, heads, length, channels] whatever it is called with.

    1. Axes in front of the heads become one, as those of a window partition: [N, windows, heads, L, C] in Twins and
       NesT. Without an axis of heads there is one head.
    2. A mask is broadcast over those axes first. The answer has the query's axes again.
    3. Calls whose query, key and value differ in the axes in front of the heads are left as they are.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            asked: dict[str, Any] = _SIGNATURE.bind(*args, **given).arguments
            query, key, value = (asked[name] for name in ("query", "key", "value"))
            if query.ndim != _AXES and query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
                mask = asked.get("attn_mask")
                if mask is not None:
                    mask = _four(mask.expand(*query.shape[:-1], key.shape[-2]))
                rest, options = asked.get("rest", ()), asked.get("options", {})
                answer = func(_four(query), _four(key), _four(value), mask, *rest, **options)
                return answer.reshape(*query.shape[:-1], value.shape[-1])
        return func(*args, **given)


def _four(tensor: torch.Tensor) -> torch.Tensor:
    """[..., heads, length, channels] with one axis in front of the heads; of three axes, with one head."""
    return tensor.unsqueeze(-3) if tensor.ndim < _AXES else tensor.flatten(0, tensor.ndim - _AXES)
