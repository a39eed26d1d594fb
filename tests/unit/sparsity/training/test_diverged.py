"""Which layer a divergence is laid to."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from gpusq_deploy.sparsity.training.diverged import finite, first_bad_gradient, first_bad_output


class Explodes(nn.Module):
    """Answers what it is asked; its gradient is infinite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0 * torch.sqrt(torch.zeros_like(x) * x)


def chain(middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), middle), nn.Linear(4, 4))


def test_the_gradient_that_is_named_is_the_first_on_the_way_back() -> None:
    module = chain(Explodes())
    torch.autograd.backward(module(torch.randn(2, 4)).sum())
    assert first_bad_gradient(module) == ", the gradient of 1.0.bias isn't finite"
    assert first_bad_gradient(chain(nn.ReLU())) == ""


class Divides(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return {"all": (x, x / 0)}


class Takes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.divides, self.after = Divides(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.after(self.divides(x)["all"][1])


def test_the_output_that_is_named_is_the_first_in_whatever_holds_it() -> None:
    module = Takes()
    assert first_bad_output(module, lambda: module(torch.randn(2, 4))) == ", the output of divides isn't finite"
    fine = chain(nn.ReLU())
    assert first_bad_output(fine, lambda: fine(torch.randn(2, 4))) == ""


def test_a_weight_goes_before_outputs() -> None:
    module = chain(nn.ReLU())
    with torch.no_grad():
        module.get_parameter("2.weight")[0, 0] = math.nan
    assert first_bad_output(module, lambda: module(torch.randn(2, 4))) == ", 2.weight isn't finite"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_among_finite_ones_is_seen(value: float) -> None:
    tensors = [torch.ones(3), torch.tensor([1.0, value]), torch.empty(0), torch.tensor([1, 2])]
    assert not finite(tensors)
    assert finite([tensors[0], *tensors[2:]])
    assert finite([torch.full((4,), 3e38)])
    assert finite([])
