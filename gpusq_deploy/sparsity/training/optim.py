"""torch's optimisers, schedules and averages, as options name them."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gpusq_deploy.sparsity.parts import as_one_kind
from gpusq_deploy.sparsity.pruning.magnitude import apply_masks
from gpusq_deploy.sparsity.training.options import DistillOptions
from gpusq_deploy.sparsity.training.pair import Distilled

_MOMENTUM = 0.9


def optimizer_of(pair: Distilled, options: DistillOptions) -> torch.optim.Optimizer:
    """Over the student's parameters and its scales."""
    groups = _parameter_groups(pair, options)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=_MOMENTUM)
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def _parameter_groups(pair: Distilled, options: DistillOptions) -> list[dict[str, Any]]:
    weights = list(pair.student.requires_grad_(requires_grad=True).parameters())
    # Decay would pull a logarithm towards the scale 1.
    return [
        {"params": weights, "weight_decay": options.weight_decay},
        *([{"params": list(pair.scales), "weight_decay": 0.0}] if pair.scales else []),
    ]


def schedule_of(
    optimizer: torch.optim.Optimizer, options: DistillOptions, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The rate of step t = 0, 1, … of T in all, of which W warm up, relative to its peak.

    t < W:  (t + 1) / (W + 1)
    else:   1, or (1 + cos(π·(t - W) / (T - W))) / 2
    """
    total = max(1, options.epochs * steps_per_epoch)
    warm = min(round(options.warmup * steps_per_epoch), total - 1)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        if options.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * min(step - warm, total - warm) / (total - warm))) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def take_rate(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, learning_rate: float
) -> None:
    """Go on from a restored state with this peak."""
    schedule.base_lrs = [learning_rate for _ in optimizer.param_groups]
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["initial_lr"] = learning_rate
        group["lr"] = learning_rate * factor(schedule.last_epoch)


class _Held(torch.nn.Module):
    """Tensors of a student and its scales, in their own storage: no hooks and no methods that a copy would share."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(f"tensor{index}", tensor)


class Average:
    """The moving average of a student's parameters, buffers and scales; nothing where the decay is None."""

    def __init__(self, pair: Distilled, decay: float | None) -> None:
        self._pair = pair
        self._model = None if decay is None else _averaged(self._live(), decay)

    def update(self) -> None:
        """After each step."""
        if self._model is not None:
            self._model.update_parameters(self._live())

    @contextmanager
    def worn(self) -> Generator[None]:
        """While it is active, the student and its scales are their average, its pruned weights zero."""
        if self._model is None or not int(self._model.n_averaged):
            yield
            return
        live, average = list(self._live().buffers()), list(self._model.module.buffers())
        kept = [tensor.clone() for tensor in live]
        _copy(live, average)
        apply_masks(self._pair.student, self._pair.masks)
        try:
            yield
        finally:
            _copy(live, kept)

    def _live(self) -> _Held:
        # Anew each time: where FSDP pads a shard, loading a state gives its parameter other memory.
        tensors = [*self._pair.student.parameters(), *self._pair.student.buffers(), *self._pair.scales]
        return _Held(as_one_kind([tensor.detach() for tensor in tensors]))

    def state_dict(self) -> dict[str, Any] | None:
        """For `load_state_dict`."""
        return None if self._model is None else self._model.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from there."""
        if self._model is not None and state is not None:
            self._model.load_state_dict(state)


def _averaged(live: _Held, decay: float) -> AveragedModel:
    # torch gives the function no types.
    average = cast("Any", get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    return AveragedModel(live, multi_avg_fn=average, use_buffers=True)


def _copy(into: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for tensor, value in zip(into, values, strict=True):
            tensor.copy_(value)
