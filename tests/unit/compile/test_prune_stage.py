"""What pruning costs: torch's own answers before and after, held against torch's own arithmetic."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gpusq_deploy.artifacts.arch import ArchSpec, Preprocessing
from gpusq_deploy.calibration.data import ArrayFile
from gpusq_deploy.compile.prune_stage import pruning_loss
from gpusq_deploy.frontend.checkpoint.load import Checkpoint
from gpusq_deploy.progress import Reporter

SAMPLES = np.random.default_rng(0).standard_normal((10, 3, 2, 2)).astype(np.float32)


def checkpoint(module: torch.nn.Module) -> Checkpoint:
    return Checkpoint(
        file="model.pt",
        digest="",
        format="",
        arch=ArchSpec(source="factory", name="x:y", arguments={}),
        module=module.eval().requires_grad_(False),
        preprocessing=Preprocessing(channels=3, height=2, width=2, mean=(0, 0, 0), std=(1, 1, 1), origin="test"),
    )


def dense() -> Checkpoint:
    torch.manual_seed(0)
    return checkpoint(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)))


def halved(original: Checkpoint) -> Checkpoint:
    """Two of each four weights zeroed."""
    torch.manual_seed(0)
    module = dense().module
    module.get_parameter("1.weight").data[:, [0, 1, 4, 5, 8, 9]] = 0
    return replace(original, module=module)


def heard(done: list[tuple[str, int, int]]) -> Reporter:
    return Reporter(say=lambda _text: None, progress=lambda label, count, total: done.append((label, count, total)))


def source(values: Any = SAMPLES) -> ArrayFile:
    return ArrayFile(name="noise.npy", values=values)


def test_the_pruned_model_is_compared_with_the_dense_one() -> None:
    done: list[tuple[str, int, int]] = []
    one, other = dense(), halved(dense())
    loss = pruning_loss(one, other, source(), held_out=True, reporter=heard(done))
    feed = torch.from_numpy(SAMPLES)
    before, after = one.module(feed).double(), other.module(feed).double()
    ratio = before.square().sum(1) / (before - after).square().sum(1)
    pooled = before.square().sum() / (before - after).square().sum()
    assert loss.sqnr_db == pytest.approx(10 * float(torch.log10(pooled)), abs=1e-4)
    assert loss.median_sqnr_db == pytest.approx(statistics.median((10 * ratio.log10()).tolist()), abs=1e-4)
    assert loss.top1_agreement == float((before.argmax(1) == after.argmax(1)).double().mean())
    assert loss.cosine == pytest.approx(
        float(torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0))
    )
    assert (loss.images, loss.held_out, loss.constant, loss.synthetic) == (10, True, False, False)
    assert loss.note == "10 samples of noise.npy, held out of calibration; torch, in float32"
    assert [count for _, count, _ in done] == [4, 8, 10]


def test_of_a_head_of_zeros_nothing_is_seen() -> None:
    one = dense()
    one.module.get_parameter("1.weight").data[:] = 0
    loss = pruning_loss(one, one, source(), held_out=False, reporter=heard([]))
    assert (loss.constant, loss.sqnr_db) == (True, 300.0)


def test_tokens_have_no_winner() -> None:
    tokens = checkpoint(torch.nn.Identity())
    loss = pruning_loss(tokens, tokens, source(), held_out=True, reporter=heard([]))
    assert loss.top1_agreement is None


class Number(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.sum()


def test_one_number_is_compared_as_a_whole() -> None:
    loss = pruning_loss(checkpoint(Number()), checkpoint(Number()), source(), held_out=True, reporter=heard([]))
    assert (loss.sqnr_db, loss.median_sqnr_db, loss.constant) == (300.0, None, False)


class Stacked(torch.nn.Module):
    """Hidden states [2, N, 12], of which pruning spoils the first element."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.flatten(1).clone()
        rows[:, 0] *= self.factor
        return torch.stack([rows, rows.square()])


def test_samples_behind_another_axis_are_taken_apart_along_theirs() -> None:
    loss = pruning_loss(checkpoint(Stacked(1)), checkpoint(Stacked(0.9)), source(), held_out=True, reporter=heard([]))
    rows = torch.from_numpy(SAMPLES).flatten(1).double()
    hidden = torch.stack([rows, rows.square()], 1)
    noise = torch.stack([0.1 * rows[:, 0], (1 - 0.9**2) * rows[:, 0].square()], 1).square().sum(1)
    alone = 10 * (hidden.square().sum((1, 2)) / noise).log10()
    ordered = [float(value) for value in alone]
    assert loss.median_sqnr_db == pytest.approx(statistics.median(ordered), abs=1e-4)
    assert (loss.lowest_sqnr_db, loss.highest_sqnr_db) == pytest.approx(
        (alone.min().item(), alone.max().item()), abs=1e-3
    )
    assert (loss.images, loss.top1_agreement) == (10, None)


class Largest(torch.nn.Module):
    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = torch.tensor([1.0, 1.0, sign])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images[:, :, 0, 0] * self.sign).argmax(1)


def test_classes_are_counted_not_measured() -> None:
    loss = pruning_loss(checkpoint(Largest(1)), checkpoint(Largest(-1)), source(), held_out=True, reporter=heard([]))
    values = torch.from_numpy(SAMPLES)[:, :, 0, 0]
    same = (values.argmax(1) == (values * torch.tensor([1.0, 1.0, -1.0])).argmax(1)).double().mean()
    assert (loss.sqnr_db, loss.cosine) == (None, None)
    assert loss.top1_agreement == pytest.approx(float(same))
