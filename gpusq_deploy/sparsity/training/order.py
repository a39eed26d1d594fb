"""Which samples a step sees and what it draws: functions of seed, epoch and step, so that no state is to be kept."""

from __future__ import annotations

import numpy as np
import torch


def batches(count: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's indices of `count` samples, `size` for each step, the last one shorter."""
    order = [int(index) for index in np.random.default_rng((seed, epoch)).permutation(count)]
    found = [order[start : start + size] for start in range(0, count, size)]
    if len(found) > 1 and len(found[-1]) == 1:  # BatchNorm has no variance of one sample
        found[-2:] = [found[-2] + found[-1]]
    return found


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Set torch's generators for one step of one process: a dropout draws the same however often a run was stopped."""
    entropy = np.random.SeedSequence((seed, epoch, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(entropy[0]))
