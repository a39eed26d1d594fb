"""The last pass: all blocks of the sparse model learn the dense one's at once, by gradient, on ever new crops.

The closed-form passes fit a layer at a time, and can't have one block make up for the next. Gradients can, and forget:
on images unlike those of the fit the trained model is worse than where it began. The mean of the two models' weights
keeps most of both (WiSE-FT, Wortsman et al., CVPR 2022); both have the same zeros, and so has their mean.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator

import torch
from torch.nn import functional

from gpusq_deploy.sparsity.pruning.block_chain import first_inputs
from gpusq_deploy.sparsity.pruning.magnitude import Masks, apply_masks
from gpusq_deploy.sparsity.pruning.whole_model import drawn_tokens
from gpusq_deploy.sparsity.reconstruction.one_block import BATCH, Pair
from gpusq_deploy.sparsity.reconstruction.plan import Plan

SHARES = (0.25, 0.5, 0.75, 1.0)
"""How much of the trained weights is in the means that are tried."""

_RATE, _WARM, _IMAGES = 3e-5, 0.1, 8
_LEAST_SIDE = 0.5
_TOKEN_SHARE = 0.5
_TOLD = 10


def train_blocks(plan: Plan, pair: Pair, masks: Masks, images: torch.Tensor, steps: int) -> torch.nn.Module:
    """A copy of the student whose blocks were trained by AdamW towards the teacher's.

    The loss is the mean over blocks and channels of Σ(sparse - dense)² / Σ(dense - mean)² over a batch's tokens: each
    channel counts alike, however large it is.

    Args:
        plan: The chain, and whether its blocks run on some tokens.
        pair: Teacher, and the student, which isn't changed.
        masks: True where a weight stays, of each 2:4 layer.
        images: [n, C, H, W]; each step sees random crops of some, flipped or not.
        steps: Of `_IMAGES` images.
    """
    student = copy.deepcopy(pair.student)
    blocks = [student.get_submodule(block.name) for block in plan.chain.blocks]
    trained = [value.requires_grad_() for block in blocks for value in block.parameters() if value.is_floating_point()]
    optimizer = torch.optim.AdamW(trained, lr=_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    random, begun, sums = torch.Generator().manual_seed(plan.options.prune.seed), time.perf_counter(), 0.0
    for step in range(1, steps + 1):
        loss = _loss(plan, pair.teacher, student, _batch(plan, pair.teacher, images, random))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        apply_masks(student, masks)
        sums += float(loss.detach())
        if step % _TOLD == 0:
            left = (time.perf_counter() - begun) / step * (steps - step)
            plan.say(f"training all blocks, step {step} of {steps}: loss {sums / _TOLD:.4f}, {left:.0f} s left")
            sums = 0.0
    return student.requires_grad_(requires_grad=False)


def means(start: torch.nn.Module, trained: torch.nn.Module) -> Iterator[tuple[float, torch.nn.Module]]:
    """The weighted means of two models' weights, by the share of the second."""
    before, after = start.state_dict(), trained.state_dict()
    for share in SHARES:
        mean = copy.deepcopy(start)
        mean.load_state_dict(
            {
                name: torch.lerp(value, after[name], share) if value.is_floating_point() else value
                for name, value in before.items()
            }
        )
        yield share, mean


def _rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / max(1.0, _WARM * steps))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _batch(plan: Plan, teacher: torch.nn.Module, images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """What reaches the first block of some images' crops; where the blocks allow it, half of the tokens."""
    drawn = torch.randint(len(images), (_IMAGES,), generator=random)
    crops = torch.cat([_crop(image[None], random) for image in images[drawn.to(images.device)]])
    tokens = first_inputs(teacher, plan.chain.blocks[0], crops, BATCH)
    return drawn_tokens(tokens, _TOKEN_SHARE, random) if plan.shortened else tokens


def _crop(image: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A piece of [1, C, H, W] of at least half its sides, as large as the whole; every other one flipped."""
    height, width = image.shape[2:]
    share, down, across, flip = (float(value) for value in torch.rand(4, generator=random))
    share = _LEAST_SIDE + (1 - _LEAST_SIDE) * share
    high, wide = max(1, round(share * height)), max(1, round(share * width))
    top, left = int(down * (height - high + 1)), int(across * (width - wide + 1))
    piece = image[:, :, top : top + high, left : left + wide]
    whole = functional.interpolate(piece, size=(height, width), mode="bicubic", antialias=True)
    return whole.flip(-1) if flip < 0.5 else whole


def _loss(plan: Plan, teacher: torch.nn.Module, student: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    errors: list[torch.Tensor] = []
    dense = sparse = tokens
    for block in plan.chain.blocks:
        with torch.no_grad():
            dense = block.run(teacher, dense)
        sparse = block.run(student, sparse)
        errors.append(_relative(sparse, dense))
    return torch.stack(errors).mean()


def _relative(sparse: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Mean over the channels, the last axis."""
    rows, wanted = (values.reshape(-1, values.shape[-1]) for values in (sparse, dense))
    power = (wanted - wanted.mean(dim=0)).square().sum(dim=0)
    return ((rows - wanted).square().sum(dim=0) / power.clamp_min(torch.finfo(power.dtype).eps)).mean()
