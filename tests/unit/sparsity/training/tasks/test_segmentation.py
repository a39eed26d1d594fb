"""Losses and mIoU of label maps, against scikit-learn and sums over pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.sparsity.training.tasks.segmentation import Segmentation

TASK = Segmentation()


def test_miou_is_the_mean_jaccard_index_of_the_pixels_that_count() -> None:
    random = np.random.default_rng(0)
    wanted = random.integers(5, size=(3, 8, 8))
    found = np.where(random.random((3, 8, 8)) < 0.6, wanted, random.integers(6, size=(3, 8, 8)))
    ignored = random.random((3, 8, 8)) < 0.2
    labels = sorted({*wanted[~ignored].tolist(), *found[~ignored].tolist()})
    score: Any = metrics  # untyped
    expected = score.jaccard_score(wanted[~ignored], found[~ignored], labels=labels, average="macro")
    targets = torch.from_numpy(np.where(ignored, 255, wanted))
    assert TASK.quality(list(torch.from_numpy(found)), list(targets)) == pytest.approx(expected)


def test_losses_are_means_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 4, 3, 5, generator=generator) for _ in range(2))
    targets = torch.randint(4, (2, 3, 5), generator=generator)
    targets[0, 0] = 255
    found = TASK.losses(nn.Identity(), student, teacher, list(targets))
    hard, soft = list[torch.Tensor](), list[torch.Tensor]()
    for image in range(2):
        for row in range(3):
            for column in range(5):
                ours, theirs = student[image, :, row, column], teacher[image, :, row, column]
                p, q = torch.softmax(theirs / 2, 0), torch.softmax(ours / 2, 0)
                soft.append(4 * (p * (p / q).log()).sum())
                if targets[image, row, column] != 255:
                    hard.append(-torch.softmax(ours, 0)[targets[image, row, column]].log())
    torch.testing.assert_close(found.hard, torch.stack(hard).mean())
    torch.testing.assert_close(found.soft, torch.stack(soft).mean())
    assert found.agree.tolist() == [True, True]
    nothing = TASK.losses(nn.Identity(), student, teacher, list(torch.full_like(targets, 255)))
    assert float(nothing.hard) == 0


def test_answers_are_resized_to_the_images() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 2, 2))
    images = torch.randn(2, 3, 8, 12)
    assert TASK.answer(module, images).shape == (2, 4, 8, 12)
    with pytest.raises(GpusqError, match="returns no logits"):
        TASK.answer(nn.Sequential(module[0], nn.Flatten()), images)
