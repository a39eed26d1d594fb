"""Where a Linear's output joins what its block passes on: found by moving the output and watching what moves with it.

A residual block computes z = gain ⊙ y + rest, with y the output of its projection, gain LayerScale or 1, and rest what
arrived. Where z is known, y can be asked to make up for the error that rest has brought along.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from gpusq_deploy.frontend import named_modules
from gpusq_deploy.sparsity.pruning.block_chain import Block

OUTPUT = ""
"""The place of a junction that is the block's own output."""

_TOLERANCE = 2e-3
_ROUNDING = 2e-6
# Below this share of the largest gain a channel of y hardly moves z: it can't make up for anything.
_SMALLEST_GAIN = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Junction:
    """z = gain ⊙ y + rest, row by row, with z the first argument of the module `place`, or `OUTPUT` of the block.

    `gain` [N], never zero where `joins` [N] is true; the other channels hardly reach z.
    """

    place: str
    gain: torch.Tensor
    joins: torch.Tensor


@dataclass(kw_only=True, slots=True)
class _Trace:
    """First arguments by module in the order of their calls, the block's output last, and the Linears' outputs."""

    inputs: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    outputs: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])
    calls: dict[str, int] = field(default_factory=dict[str, int])


def find_junctions(module: torch.nn.Module, block: Block, tokens: torch.Tensor) -> dict[str, Junction | None]:
    """The last junction of each Linear that the block calls exactly once, in the order of the calls.

    None where y joins nothing of its own width and number of rows. Where windows or another order of tokens lie between
    it and the stream, the junction is the last tensor before those, which is y itself.

    Args:
        module: The model.
        block: One of its chain.
        tokens: What the block takes for one image or more.
    """
    still = _traced(module, block, tokens)
    found: dict[str, Junction | None] = {}
    for layer in (name for name in still.outputs if still.calls[name] == 1):
        output = still.outputs[layer]
        random = torch.Generator().manual_seed(0)
        shift = torch.randn(output.shape, generator=random).to(output.device) * (1 + output.abs().max())
        moved = _traced(module, block, tokens, {layer: shift})
        found[layer] = None
        for place, value in still.inputs.items():
            if _like(value, output) and place in moved.inputs and still.calls.get(place, 1) == 1:
                change = (moved.inputs[place] - value).reshape_as(output)
                found[layer] = _junction(place, value, change, shift) or found[layer]
    return found


def linears_of(module: torch.nn.Module, block: Block) -> dict[str, torch.nn.Linear]:
    """The Linear modules inside a block, by their names in the model."""
    return {name: child for name, child in _inside(module, block) if isinstance(child, torch.nn.Linear)}


def _like(value: torch.Tensor, output: torch.Tensor) -> bool:
    """As many rows of the same width: a grid [n, H, W, D] may hold what [n, H·W, D] does."""
    return value.numel() == output.numel() and value.shape[-1:] == output.shape[-1:]


def _inside(module: torch.nn.Module, block: Block) -> list[tuple[str, torch.nn.Module]]:
    inside = named_modules(module.get_submodule(block.name))
    return [(f"{block.name}.{name}", child) for name, child in inside if name]


def _junction(place: str, value: torch.Tensor, change: torch.Tensor, shift: torch.Tensor) -> Junction | None:
    """Least squares of the change on the shift, channel by channel; None unless nothing is left over."""
    axes = tuple(range(shift.ndim - 1))
    gain = (change * shift).sum(axes) / shift.square().sum(axes)
    largest = float(gain.abs().max())
    allowed = _TOLERANCE * largest * float(shift.abs().max()) + _ROUNDING * float(value.abs().max())
    rest = float((change - gain * shift).abs().max())
    if not rest <= allowed or largest * float(shift.abs().max()) < 10 * allowed:
        return None
    return Junction(place=place, gain=gain, joins=gain.abs() > _SMALLEST_GAIN * largest)


def _traced(
    module: torch.nn.Module, block: Block, tokens: torch.Tensor, shifts: dict[str, torch.Tensor] | None = None
) -> _Trace:
    trace = _Trace()
    with torch.no_grad(), _tracing(module, block, trace, shifts or {}):
        output = block.run(module, tokens)
    trace.inputs[OUTPUT] = output
    return trace


@contextmanager
def _tracing(
    module: torch.nn.Module, block: Block, trace: _Trace, shifts: dict[str, torch.Tensor]
) -> Generator[None, None, None]:
    def before(name: str) -> Any:
        def hook(_child: torch.nn.Module, args: tuple[Any, ...]) -> None:
            trace.calls[name] = trace.calls.get(name, 0) + 1
            if args and isinstance(args[0], torch.Tensor):
                # Cloned: an activation may work in place.
                trace.inputs[name] = args[0].clone()

        return hook

    def after(name: str) -> Any:
        def hook(_child: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor | None:
            trace.outputs[name] = output.clone()
            return output + shifts[name] if name in shifts else None

        return hook

    with ExitStack() as stack:
        for name, child in _inside(module, block):
            stack.callback(child.register_forward_pre_hook(before(name)).remove)
            if isinstance(child, torch.nn.Linear):
                stack.callback(child.register_forward_hook(after(name)).remove)
        yield
