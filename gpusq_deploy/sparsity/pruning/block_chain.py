"""Find where a model can be pruned piece by piece: a chain of blocks, each fed with nothing but the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch

from gpusq_deploy.frontend import named_modules

_MOST = 0.9
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One module of a chain by name, and what it takes beside its predecessor's output: the same for every image."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def run(self, module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """The output of this block of `module`, the model that was searched or a copy of it."""
        return cast("torch.Tensor", module.get_submodule(self.name)(inputs, *self.args, **self.kwargs))


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """Blocks in order: block i + 1 takes exactly what block i returns, one tensor."""

    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    child: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@dataclass(kw_only=True, slots=True)
class _Container:
    name: str
    children: dict[str, torch.nn.Module]
    calls: list[_Call] = field(default_factory=list[_Call])


class _Reached(Exception):  # noqa: N818 - not an error: it stops a forward pass that has served its purpose
    pass


def block_chain(module: torch.nn.Module, image: torch.Tensor) -> Chain | None:
    """The model's chain of blocks, proven by running it; None where there is none.

    A candidate is a Sequential or ModuleList of at least two modules. Declined, each because a block could not be run
    alone on its predecessor's output:
    1. a block that one forward pass doesn't call exactly once, or out of order,
    2. a block whose first argument isn't a tensor, or isn't its predecessor's output,
    3. a block that takes anything else that depends on the image or on the number of images.
    Of the chains that hold nearly as many Linear weights as the one that holds most (nine tenths), the longest is
    taken, and of those the first.

    Args:
        module: The model, in eval mode.
        image: [1, C, H, W].
    """
    containers = [
        _Container(name=name, children=dict(child.named_children()))
        for name, child in named_modules(module)
        if isinstance(child, (torch.nn.Sequential, torch.nn.ModuleList)) and len(child) > 1
    ]
    _record(module, containers, image)
    alone = [container.calls for container in containers]
    for container in containers:
        container.calls = []
    _record(module, containers, torch.cat([image, image.flip(-1) + 1]))
    sizes = _chain_sizes(containers, alone)
    if not sizes:
        return None
    large = [index for index, size in sizes.items() if size >= _MOST * max(sizes.values())]
    chosen = max(large, key=lambda index: len(containers[index].children))
    prefix = f"{containers[chosen].name}." if containers[chosen].name else ""
    return Chain(
        blocks=tuple(
            Block(name=f"{prefix}{call.child}", args=call.args[1:], kwargs=call.kwargs) for call in alone[chosen]
        )
    )


def _chain_sizes(containers: Sequence[_Container], alone: Sequence[list[_Call]]) -> dict[int, int]:
    """Linear weights of those containers that are chains, by index; `alone` are their calls on one image."""
    sizes: dict[int, int] = {}
    for index, (container, calls) in enumerate(zip(containers, alone, strict=True)):
        size = sum(_linear_weights(child) for child in container.children.values())
        if size and _linked(calls, container) and _same_extras(calls, container.calls):
            sizes[index] = size
    return sizes


def takes_any_tokens(module: torch.nn.Module, chain: Chain, tokens: torch.Tensor) -> bool:
    """Whether every block treats its input as a set of tokens, so that it can also run on some of them.

    True where each block, given the tokens in another order, returns the same outputs in that order, and accepts half
    of them. Windows, convolutions over the grid and position biases inside the blocks all fail.

    Args:
        module: The model.
        chain: Its blocks.
        tokens: What the first block takes for one image; anything but [1, T, D] is no set of tokens.
    """
    if tokens.ndim != 3 or tokens.shape[1] < 4:
        return False
    random = torch.Generator().manual_seed(0)
    order = torch.randperm(tokens.shape[1], generator=random).to(tokens.device)
    half = order[: len(order) // 2].sort().values
    with torch.no_grad():
        for block in chain.blocks:
            outputs = block.run(module, tokens)
            try:
                shuffled, fewer = block.run(module, tokens[:, order]), block.run(module, tokens[:, half])
            except Exception:  # a block may refuse an unusual length in any way it likes
                return False
            largest = float(outputs.abs().max())
            off = float((shuffled - outputs[:, order]).abs().max()) if shuffled.shape == outputs.shape else largest
            if off > _TOLERANCE * largest or fewer.shape[1] != len(half):
                return False
            tokens = outputs
    return True


def first_inputs(module: torch.nn.Module, block: Block, images: torch.Tensor, batch: int) -> torch.Tensor:
    """What reaches `block`, for all images [n, ...]; nothing behind it is run."""
    held: list[torch.Tensor] = []

    def stop(_block: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        held.append(args[0])
        raise _Reached

    handle = module.get_submodule(block.name).register_forward_pre_hook(stop)
    try:
        with torch.no_grad():
            for part in torch.split(images, batch):
                _run_until_reached(module, part)
    finally:
        handle.remove()
    return torch.cat(held)


def _linear_weights(module: torch.nn.Module) -> int:
    return sum(child.weight.numel() for _, child in named_modules(module) if isinstance(child, torch.nn.Linear))


def _record(module: torch.nn.Module, containers: list[_Container], images: torch.Tensor) -> None:
    def hook_for(container: _Container, name: str) -> Callable[..., None]:
        def hook(_block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            container.calls.append(_Call(child=name, args=args, kwargs=kwargs, output=output))

        return hook

    with torch.no_grad(), ExitStack() as stack:
        for container in containers:
            for name, child in container.children.items():
                stack.callback(child.register_forward_hook(hook_for(container, name), with_kwargs=True).remove)
        module(images)


def _linked(calls: list[_Call], container: _Container) -> bool:
    if [call.child for call in calls] != list(container.children):
        return False
    if not all(call.args and isinstance(call.args[0], torch.Tensor) for call in calls):
        return False
    return all(_same(before.output, after.args[0]) for before, after in pairwise(calls))


def _same_extras(alone: list[_Call], together: list[_Call]) -> bool:
    return len(alone) == len(together) and all(
        _same(one.args[1:], other.args[1:]) and _same(one.kwargs, other.kwargs)
        for one, other in zip(alone, together, strict=True)
    )


def _same(one: Any, other: Any) -> bool:
    """Equal values of equal types; what can't be compared counts as different."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, (tuple, list)):
        mine, theirs = cast("list[Any]", one), cast("list[Any]", other)
        return len(mine) == len(theirs) and all(map(_same, mine, theirs))
    if isinstance(one, dict):
        first, second = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    return isinstance(one, (bool, int, float, str, type(None))) and bool(one == other)


def _run_until_reached(run: Callable[[torch.Tensor], Any], images: torch.Tensor) -> None:
    try:
        run(images)
    except _Reached:
        return
    raise AssertionError("block_chain has seen this block called")
