"""Attention over other than four axes: with four it answers as torch does over as many as there are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from gpusq_deploy.frontend.export.attention_axes import FourAxes

attention: Any = functional.scaled_dot_product_attention


def inputs(*shape: int) -> list[torch.Tensor]:
    """A query, and a key and a value that are one longer, the value two channels wider too."""
    generator = torch.Generator().manual_seed(0)
    *front, length, channels = shape
    sizes = [(length, channels), (length + 1, channels), (length + 1, channels + 2)]
    return [torch.randn(*front, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 3, 5, 4), (2, 6, 3, 5, 4), (2, 6, 2, 3, 5, 4)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.7}, {"is_causal": True}])
def test_the_answer_is_torchs(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    tensors = inputs(*shape)
    wanted = attention(*tensors, **options)
    with FourAxes():
        got = attention(*tensors, **options)
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("mask", [(5, 6), (3, 5, 6), (6, 1, 5, 6), (2, 1, 3, 1, 6)])
@pytest.mark.parametrize("boolean", [False, True])
def test_a_mask_reaches_every_axis(mask: tuple[int, ...], *, boolean: bool) -> None:
    tensors = inputs(2, 6, 3, 5, 4)
    values = torch.randn(mask, generator=torch.Generator().manual_seed(1))
    given = (values > -1) if boolean else values
    wanted = attention(*tensors, attn_mask=given)
    with FourAxes():
        torch.testing.assert_close(attention(*tensors, given), wanted)


def test_keys_for_other_windows_are_left_to_torch() -> None:
    query, key, value = inputs(2, 6, 3, 5, 4)
    wanted = attention(query, key[:, :1], value[:, :1])
    with FourAxes():
        torch.testing.assert_close(attention(query, key[:, :1], value[:, :1]), wanted)
