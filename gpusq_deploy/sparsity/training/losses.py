"""The terms of the distillation loss that every task shares.

    L = alpha · L_hard + beta · L_soft + gamma · L_feature        alpha = 1, beta = 10, gamma = 5

As reported for GPUSQ-ViT (Yu, Chen, Gan, Fan, CVPR 2023, arXiv 2305.10727): the weights and the three terms come
from summaries of the paper at second hand, not from its text. Temperature, the norm of the feature term, optimiser
and learning rate are not reported there; those here are our own choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from gpusq_deploy.sparsity.training.distributed import ALONE, Ranks

_TINY = 1e-12


def soft_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) of logits [N, classes], mean over N.

    T² keeps the gradient's size independent of T: Hinton, Vinyals, Dean, arXiv 1503.02531.
    """
    student_log = functional.log_softmax(student / temperature, dim=1)
    teacher_log = functional.log_softmax(teacher / temperature, dim=1)
    divergence = functional.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def feature_losses(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], agree: torch.Tensor, ranks: Ranks = ALONE
) -> torch.Tensor:
    """Of each block, MSE(student, teacher) / Var(teacher), over the samples where both predict one class.

    Of several processes, each gives its samples: count and variance are those of all, and the mean of what the
    processes get is the loss over all.

    Args:
        student: The student's block outputs, each [N, ...].
        teacher: The teacher's, of the same shapes.
        agree: Booleans [N].
        ranks: The processes.

    Returns:
        [blocks]; zeros where no sample agrees.
    """
    agreeing = int(ranks.total(agree.sum()))
    if not student or not agreeing:
        return torch.zeros(len(student), device=agree.device)
    rows = [theirs[agree].detach() for theirs in teacher]
    counts = torch.tensor([agreeing * math.prod(each.shape[1:]) for each in rows], device=agree.device)
    means = ranks.total(torch.stack([each.sum(dtype=torch.float64) for each in rows])) / counts
    squares = [
        (each - mean.to(each.dtype)).square().sum(dtype=torch.float64) for each, mean in zip(rows, means, strict=True)
    ]
    variances = (ranks.total(torch.stack(squares)) / counts).clamp_min(_TINY)
    errors = [(ours[agree] - each).square().sum() for ours, each in zip(student, rows, strict=True)]
    return torch.stack(errors) * (ranks.world / (counts * variances)).float()


def block_weights(losses: Sequence[float]) -> tuple[float, ...]:
    """Weights of blocks in the feature term of quantisation-aware training: 1 / loss, scaled to a mean of 1.

    A larger loss in the first stage gives a smaller weight, as reported for GPUSQ-ViT; the formula is our own choice.

    Args:
        losses: The first stage's feature losses, of each block.
    """
    inverse = [1 / max(loss, _TINY) for loss in losses]
    return tuple(weight * len(inverse) / sum(inverse) for weight in inverse)
