"""Rates, averages and lower precisions against their formulas and torch's own."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from gpusq_deploy.sparsity.pruning.magnitude import apply_masks, magnitude_masks
from gpusq_deploy.sparsity.training.optim import Average, optimizer_of, schedule_of, take_rate
from gpusq_deploy.sparsity.training.options import DistillOptions
from gpusq_deploy.sparsity.training.pair import Distilled
from gpusq_deploy.sparsity.training.recompute import recomputed
from gpusq_deploy.sparsity.training.tasks.classification import Classification

USUAL = DistillOptions(epochs=3, learning_rate=0.1, batch_size=4, seed=0)


def pair(scales: int = 0) -> Distilled:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    masks = magnitude_masks(student, ["0"])
    apply_masks(student, masks)
    return Distilled(
        student=student,
        teacher=copy.deepcopy(student),
        masks=masks,
        task=Classification(),
        scales=[nn.Parameter(torch.tensor(-3.0)) for _ in range(scales)],
    )


def rates(options: DistillOptions, steps: int, steps_per_epoch: int) -> list[float]:
    optimizer = optimizer_of(pair(), options)
    schedule = schedule_of(optimizer, options, steps_per_epoch)
    found: list[float] = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    wanted: list[float] = []
    for _ in range(15):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates(USUAL, 15, 5) == pytest.approx(wanted)


def test_a_warm_up_grows_to_the_peak_that_a_constant_rate_keeps() -> None:
    options = msgspec.structs.replace(USUAL, schedule="constant", warmup=0.8)
    assert rates(options, 7, 5) == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.1])


def test_a_warm_up_longer_than_all_epochs_ends_with_the_last_step() -> None:
    assert rates(msgspec.structs.replace(USUAL, warmup=100.0), 15, 5)[-1] == pytest.approx(0.1)


def test_another_peak_takes_over_where_the_schedule_stands() -> None:
    options = USUAL
    optimizer = optimizer_of(pair(scales=1), options)
    schedule = schedule_of(optimizer, options, 5)
    for _ in range(6):
        optimizer.step()
        schedule.step()
    before = optimizer.param_groups[0]["lr"]
    take_rate(optimizer, schedule, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([before / 10] * 2)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rates(USUAL, 8, 5)[7] / 10)


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_scales_dont_decay(name: Any, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = optimizer_of(pair(scales=2), msgspec.structs.replace(USUAL, optimizer=name, weight_decay=0.3))
    assert isinstance(optimizer, kind)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]


def test_an_average_is_the_moving_average_and_is_worn_for_a_while() -> None:
    """a_1 = w_1, a_t = d·a_{t-1} + (1 - d)·w_t; of buffers and scales too."""
    found = pair(scales=1)
    average = Average(found, 0.8)
    weight, scale = found.student.get_parameter("0.weight"), found.scales[0]
    mean = found.student.get_buffer("1.running_mean")
    wanted: list[torch.Tensor] = []
    for step in range(4):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight) * found.masks["0"])
            scale.add_(step)
            mean.add_(1.0)
        average.update()
        now = [tensor.detach().clone() for tensor in (weight, scale, mean)]
        wanted = [0.8 * before + 0.2 * value for before, value in zip(wanted, now, strict=True)] if wanted else now
    live = weight.detach().clone()
    with average.worn():
        for tensor, value in zip((weight, scale, mean), wanted, strict=True):
            torch.testing.assert_close(tensor.detach(), value)
        assert torch.equal(weight != 0, found.masks["0"])
    assert torch.equal(weight, live)


def test_without_a_decay_nothing_is_worn() -> None:
    found = pair()
    average = Average(found, None)
    before = found.student.get_parameter("0.weight").detach().clone()
    average.update()
    with average.worn():
        assert torch.equal(found.student.get_parameter("0.weight"), before)
    assert average.state_dict() is None


def test_recomputed_blocks_run_again_for_the_gradient_and_are_themselves_after() -> None:
    runs: list[int] = []
    blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def ran(*_: Any) -> None:
        runs.append(0)

    blocks[0].register_forward_pre_hook(ran)
    inner = nn.Sequential(blocks[0])
    whole = nn.Sequential(inner, nn.Sequential(blocks[1]))
    x = torch.randn(2, 4)
    torch.autograd.backward(whole(x).sum())
    weight = blocks.get_parameter("0.weight")
    assert weight.grad is not None
    wanted = weight.grad.clone()
    blocks.zero_grad()
    assert len(runs) == 1
    with recomputed(nn.ModuleDict({"blocks": whole})):
        torch.autograd.backward(whole(x).sum())
    assert len(runs) == 3
    assert torch.equal(weight.grad, wanted)
    assert "forward" not in vars(inner)
