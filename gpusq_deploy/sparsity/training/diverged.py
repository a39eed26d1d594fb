"""Where training diverged: the first module whose weights, output or gradient isn't finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import named_modules
from gpusq_deploy.sparsity.parts import is_shared_out, own_part
from gpusq_deploy.sparsity.training.distributed import device, ranks


def divergence(value: float, where: str, place: str) -> GpusqError:
    """The error that ends the training: a loss or a gradient isn't finite at a step, and in which layer."""
    return GpusqError(
        f"training diverged: the loss is {value}{where}",
        place=place,
        hint="lower --lr, say to a tenth: with --resume it goes on from the last good state",
    )


def finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether all values of tensors are, those of other processes too; one look at the device."""
    parts = [own_part(tensor.detach()) for tensor in tensors if tensor.is_floating_point()]
    sizes: list[torch.Tensor] = [torch.linalg.vector_norm(part.float(), ord=math.inf) for part in parts if part.numel()]
    bad = (~torch.isfinite(torch.stack(sizes))).sum() if sizes else torch.zeros((), dtype=torch.int64, device=device())
    return not int(ranks().total(bad) if any(map(is_shared_out, tensors)) else bad)


def first_bad_gradient(module: torch.nn.Module) -> str:
    """In words, the module whose gradient is the first that isn't finite, on the way back; empty where all are."""
    bad = [name for name, value in module.named_parameters() if value.grad is not None and not finite([value.grad])]
    return f", the gradient of {bad[-1]} isn't finite" if bad else ""


def first_bad_output(module: torch.nn.Module, forward: Callable[[], object]) -> str:
    """In words, the first module whose weight or, in this forward pass, output isn't finite; empty where all are.

    Args:
        module: The model.
        forward: Runs it.
    """
    for name, value in module.named_parameters():
        if not finite([value]):
            return f", {name} isn't finite"
    seen: list[str] = []

    def look(name: str, _module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        if not finite(list(_tensors(output))):
            seen.append(name)

    handles = [child.register_forward_hook(partial(look, name)) for name, child in named_modules(module) if name]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return f", the output of {seen[0]} isn't finite" if seen else ""


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for entry in cast("Sequence[Any]", output):
            yield from _tensors(entry)
    elif callable(getattr(output, "values", None)):  # a dict, or what transformers answers
        for entry in output.values():
            yield from _tensors(entry)
