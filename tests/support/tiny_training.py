"""A distillation of a few Linear layers: small enough for several processes on few cores."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from kept_samples import kept_samples
from torch import nn

from gpusq_deploy.artifacts.arch import Preprocessing
from gpusq_deploy.sparsity.pruning.magnitude import apply_masks, magnitude_masks
from gpusq_deploy.sparsity.training.data.entries import EntrySamples
from gpusq_deploy.sparsity.training.distill import recover
from gpusq_deploy.sparsity.training.options import DistillOptions, EpochResult, StepResult
from gpusq_deploy.sparsity.training.pair import Distilled
from gpusq_deploy.sparsity.training.qat import InputScales, fake_quantized
from gpusq_deploy.sparsity.training.samples import TrainingData
from gpusq_deploy.sparsity.training.state import Keeper
from gpusq_deploy.sparsity.training.tasks.classification import Classification

CLASSES = 4
LAYERS = ("blocks.0.0", "blocks.1.0", "blocks.2.0")
PIXELS = Preprocessing(channels=1, height=4, width=4, mean=(0.0,), std=(1.0,), origin="test")
# 37 samples in batches of 9: shares of 5 and 4, and last a batch of 10, for a single one is added to the one before.
COUNT, BATCH = 37, 9
EPOCHS, STEPS = 3, 4


class Blocks(nn.Module):
    """Blocks, a head, and a parameter that no answer needs."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(3))
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(3)))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.blocks(images.flatten(1)))
        return logits


def samples(count: int, seed: int) -> EntrySamples:
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=count).astype(np.int64)
    return kept_samples(rng.standard_normal((count, 1, 4, 4)).astype(np.float32), labels, PIXELS)


def data() -> TrainingData:
    return TrainingData(
        train=samples(COUNT, 1), validation=samples(10, 2), held_out=samples(10, 3), classes=tuple("abcd"), skipped=()
    )


def pair(module: nn.Module | None = None, scales: InputScales | None = None) -> Distilled:
    """A pruned student of a module, Blocks by default, and its teacher."""
    torch.manual_seed(0)
    teacher = (Blocks() if module is None else module).requires_grad_(requires_grad=False).eval()
    with torch.no_grad():
        for value in teacher.parameters():
            value.mul_(2)  # else logits are so alike that their divergence is rounding
    student = copy.deepcopy(teacher)
    masks = magnitude_masks(student, LAYERS)
    apply_masks(student, masks)
    return Distilled(
        student=student,
        teacher=teacher,
        masks=masks,
        task=Classification(),
        scales=() if scales is None else scales.parameters(),
    )


def options(**others: Any) -> DistillOptions:
    asked: dict[str, Any] = {"epochs": EPOCHS, "learning_rate": 3e-3, "batch_size": BATCH, "seed": 0, **others}
    return DistillOptions(**asked)


def trained(options: DistillOptions, keeper: Keeper | None = None, *, int8: bool = False) -> dict[str, Any]:
    """The curve and the student of a run in this process, alone or one of several; a KeyboardInterrupt ends it."""
    scales = InputScales(logarithms={"head": nn.Parameter(torch.tensor(-3.0))})
    trains = pair(scales=scales if int8 else None)
    steps: list[StepResult] = []
    epochs: list[EpochResult] = []
    blocks: tuple[float, ...] = ()
    with fake_quantized(trains.student, scales) if int8 else nullcontext():
        try:
            blocks = recover(trains, data(), options, epochs.append, told=steps.append, keeper=keeper).block_losses
        except KeyboardInterrupt:
            assert keeper is not None
    return {
        "curve": [(step.epoch, step.step, step.hard, step.soft, step.feature) for step in steps],
        "losses": [result.loss for result in epochs],
        "blocks": blocks,
        "student": {name: value.clone() for name, value in trains.student.state_dict().items()},
        "scale": float(scales.parameters()[0].detach()),
    }


def assert_one_curve(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The losses of each step and epoch are those, to 1e-5; of a run that went on, of its steps."""
    steps, epochs = len(found["curve"]), len(found["losses"])
    curve, losses = wanted["curve"][-steps:], wanted["losses"][-epochs:]
    assert [entry[:2] for entry in found["curve"]] == [entry[:2] for entry in curve]
    terms, others = (np.array([entry[2:] for entry in entries]) for entries in (found["curve"], curve))
    np.testing.assert_allclose(terms, others, rtol=1e-5)
    np.testing.assert_allclose(found["losses"], losses, rtol=1e-5)
