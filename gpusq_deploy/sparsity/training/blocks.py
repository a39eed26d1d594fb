"""Find a model's repeated blocks by its structure: what a feature term compares between a student and its teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch

from gpusq_deploy.frontend import named_modules


class Blocks(NamedTuple):
    """Names of modules in order of execution: all blocks, and the `later` ones, whose features are compared."""

    all: tuple[str, ...]
    later: tuple[str, ...]


class _Child(NamedTuple):
    """A child of a container of `siblings` children; `alike`: all of them are of one class."""

    name: str
    module: torch.nn.Module
    siblings: int
    alike: bool


def repeated_blocks(module: torch.nn.Module) -> Blocks:
    """The blocks of a model of any family; none where it has none.

    A block
    1. is a child of a Sequential or ModuleList, and no such container itself,
    2. holds two Linear layers or more, those of a nn.MultiheadAttention among them, and a normalisation: a head of
       Linears or a stage of convolutions is none,
    3. holds no other block: a Swin's stage is none, its blocks are,
    4. isn't the only one of its class in the model, unless its container holds nothing else.

    Where no module is one, blocks are the children of containers of two or more, all of one class, that hold a Linear.
    Modules come in the order of their definition, which is that of execution in the families of docs/families.md.

    Later are, of each class of blocks, those behind the first half of them, the middle one of an odd number included:
    of a Swin over all its stages, of DETR's encoder and decoder in each.
    """
    children = _children(module)
    whole = [child for child in children if not _is_container(child.module) and _is_whole(child.module)]
    plain = [child for child in children if child.siblings > 1 and child.alike and _linears(child.module)]
    inner = _inner(whole or plain)
    counts = Counter(type(child.module) for child in inner)
    blocks = [child for child in inner if counts[type(child.module)] > 1 or child.alike]
    return Blocks(tuple(child.name for child in blocks), tuple(_later(blocks)))


def first_tensor(output: Any) -> torch.Tensor | None:
    """A block's hidden states: its output, or the first entry of a tuple or a transformers ModelOutput.

    None where that is no tensor.
    """
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, (tuple, list, Mapping)):
        held = cast("Mapping[str, Any] | Sequence[Any]", output)
        entries = held.values() if isinstance(held, Mapping) else held
        return first_tensor(next(iter(entries), None))
    return None


def _children(module: torch.nn.Module) -> list[_Child]:
    """Children of containers that have children themselves, in the order of their definition."""
    found: dict[str, _Child] = {}
    for name, container in named_modules(module):
        if _is_container(container):
            children = dict(container.named_children())
            alike = len({type(child) for child in children.values()}) == 1
            prefix = f"{name}." if name else ""
            found |= {
                f"{prefix}{key}": _Child(f"{prefix}{key}", child, len(children), alike)
                for key, child in children.items()
            }
    return [found[name] for name, child in named_modules(module) if name in found and next(child.children(), None)]


def _inner(children: Sequence[_Child]) -> list[_Child]:
    """Those that hold no other of them."""
    return [child for child in children if not any(other.name.startswith(f"{child.name}.") for other in children)]


def _is_container(module: torch.nn.Module) -> bool:
    return isinstance(module, (torch.nn.Sequential, torch.nn.ModuleList))


def _linears(module: torch.nn.Module) -> int:
    return sum(isinstance(child, (torch.nn.Linear, torch.nn.MultiheadAttention)) for child in module.modules())


def _is_whole(module: torch.nn.Module) -> bool:
    # Families bring normalisations of their own classes: RmsNorm, LayerNorm2d.
    return _linears(module) > 1 and any("norm" in type(child).__name__.lower() for child in module.modules())


def _later(blocks: Sequence[_Child]) -> Iterator[str]:
    counts, seen = Counter(type(child.module) for child in blocks), Counter[type[torch.nn.Module]]()
    for child in blocks:
        kind = type(child.module)
        if seen[kind] >= counts[kind] // 2:
            yield child.name
        seen[kind] += 1
