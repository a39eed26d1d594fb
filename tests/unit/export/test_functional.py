"""A layer that is computed without its module being called is named all the same."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_families
import torch
from torch import nn

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.checkpoint.checkpoint import Checkpoint
from gpusq_deploy.compile import CANONICAL
from gpusq_deploy.export.onnx_export import export_float_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.passes.base import run_passes

BATCH = BatchRange(minimum=2, optimum=2, maximum=2)


def layers(checkpoint: Checkpoint) -> list[str]:
    model = run_passes(export_float_model(checkpoint, batch=BATCH), CANONICAL)
    return [layer.layer for layer in weighted_layers(model)]


@pytest.mark.slow
def test_layers_of_torchvisions_attention_have_the_names_of_their_modules() -> None:
    for name in ("torchvision-swin", "torchvision-vit"):
        checkpoint = tiny_families.checkpoint(name)
        known: Any = checkpoint.module
        modules = {title for title, child in known.named_modules() if isinstance(child, (nn.Linear, nn.Conv2d))}
        found = layers(checkpoint)
        # MultiheadAttention's packed projection is no module: its parameter has the attention's name.
        packed = {title for title, child in known.named_modules() if isinstance(child, nn.MultiheadAttention)}
        assert len(found) == len(set(found))
        assert set(found) == modules | packed


class Handed(nn.Module):
    """An inner module that hands its two Linear layers to a function; they may have equal weights."""

    def __init__(self, *, equal: bool) -> None:
        super().__init__()
        self.inner = Inner(equal=equal)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(image.flatten(1))
        return result


class Inner(nn.Module):
    def __init__(self, *, equal: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        if equal:
            self.second.weight = nn.Parameter(self.first.weight.detach().clone())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.linear(values, self.second.weight, self.second.bias).relu()
        return nn.functional.linear(hidden, self.first.weight, self.first.bias)


@pytest.mark.parametrize("equal", [False, True])
def test_a_weight_that_two_children_have_names_none(*, equal: bool) -> None:
    torch.manual_seed(0)
    module = Handed(equal=equal).eval().requires_grad_(requires_grad=False)
    checkpoint = Checkpoint(
        file="handed",
        digest="",
        format="",
        arch=ArchSpec(source="factory", name="test:handed"),
        module=module,
        preprocessing=Preprocessing(channels=1, height=1, width=8, mean=(0.0,), std=(1.0,), origin="test"),
    )
    found = layers(checkpoint)
    if equal:
        assert all(name.startswith("inner/") for name in found)
    else:
        assert found == ["inner.second", "inner.first"]
