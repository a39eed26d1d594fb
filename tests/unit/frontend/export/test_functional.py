"""A layer that is computed without its module being called is named all the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import tiny_families
import tiny_models
import torch
from torch import nn

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.frontend.checkpoint.tensors import array_from_tensor
from gpusq_deploy.frontend.checkpoint.weights import layer_weights
from gpusq_deploy.frontend.export.onnx_export import export_float_model
from gpusq_deploy.graph.layers import weighted_layers
from gpusq_deploy.graph.passes.base import run_passes
from gpusq_deploy.graph.passes.pipelines import CANONICAL

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
        assert len(found) == len(set(found))
        # MultiheadAttention's packed projection is no module: its layer has the name of its parameter.
        assert set(found) == modules | {weight.layer for weight in layer_weights(checkpoint.module)}


class Asking(nn.Module):
    """Cross attention: queries of one tensor, keys of another, values of a third, whose width may be another."""

    def __init__(self, *, others: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=others, vdim=others, batch_first=True)
        self.first, self.second = nn.Linear(8, others), nn.Linear(8, others)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = image.flatten(1, 2)
        result: torch.Tensor = self.attention(tokens, self.first(tokens), self.second(tokens), need_weights=False)[0]
        return result


@pytest.mark.parametrize("others", [8, 4])
def test_parts_of_an_attentions_projections_have_its_parameters_names(others: int) -> None:
    torch.manual_seed(0)
    module = Asking(others=others).eval().requires_grad_(requires_grad=False)
    found = Counter(name.partition("/")[0] for name in layers(checkpoint_of(module)))
    names = {weight.layer for weight in layer_weights(module)}
    # Three products by parts of one parameter, or by three parameters.
    assert found == {name: 3 if name == "attention.in_proj" else 1 for name in names}
    model = run_passes(export_float_model(checkpoint_of(module), batch=BATCH), CANONICAL)
    image = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(1))
    answer = tiny_models.run_model(model, {str(model.graph.inputs[0].name): array_from_tensor(image)})["output"]
    np.testing.assert_allclose(answer, array_from_tensor(module(image)), rtol=1e-5, atol=1e-6)


def checkpoint_of(module: nn.Module) -> Checkpoint:
    return Checkpoint(
        file="handed",
        digest="",
        format="",
        arch=ArchSpec(source="factory", name="test:handed"),
        module=module,
        preprocessing=Preprocessing(channels=1, height=1, width=8, mean=(0.0,), std=(1.0,), origin="test"),
    )


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
    found = layers(checkpoint_of(module))
    if equal:
        assert all(name.startswith("inner/") for name in found)
    else:
        assert found == ["inner.second", "inner.first"]
