"""A module's parts by name, and the two answers that a rule about its channels may give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, cast

import torch

from gpusq_deploy.artifacts import ChannelAxis, ChannelKind, Channels, Declined
from gpusq_deploy.numerics import GROUP


class ModuleParts:
    """A module's parts by name, typed."""

    def __init__(self, module: torch.nn.Module) -> None:
        untyped: Any = module
        self.root = module
        self.modules = cast("dict[str, torch.nn.Module]", dict(untyped.named_modules(remove_duplicate=False)))
        self.parameters: dict[str, torch.nn.Parameter] = dict(module.named_parameters(remove_duplicate=False))
        self.owners = defaultdict[int, list[str]](list)
        for name, parameter in self.parameters.items():
            self.owners[parameter.untyped_storage().data_ptr()].append(name)

    def below(self, place: str) -> dict[str, torch.nn.Parameter]:
        """Parameters of a module and all its children, by names relative to it."""
        prefix = f"{place}." if place else ""
        return {name.removeprefix(prefix): value for name, value in self.parameters.items() if name.startswith(prefix)}

    def linear(self, place: str, name: str) -> torch.nn.Linear | None:
        """A Linear with a plain weight."""
        child = self.modules.get(f"{place}.{name}" if place else name)
        plain = isinstance(child, torch.nn.Linear) and f"{joined(place, name)}.weight" in self.parameters
        return cast("torch.nn.Linear", child) if plain else None


def joined(place: str, name: str) -> str:
    """The dotted name of a part of `place`; the model itself has an empty name."""
    return f"{place}.{name}" if place else name


def free_channels(
    kind: ChannelKind, place: str, size: int, segment: int, axes: Sequence[ChannelAxis], *readers: str
) -> Channels | Declined:
    """Channels that are free; declined where they can't be moved in whole groups of four."""
    if segment % GROUP:
        within = "heads" if segment != size else "channels"
        return left_alone(kind, place, f"{within} of {segment} are no whole groups of {GROUP}")
    return Channels(kind=kind, place=place, size=size, segment=segment, axes=tuple(axes), readers=readers)


def left_alone(kind: ChannelKind, place: str, reason: str) -> Declined:
    """Channels that stay as they are."""
    return Declined(kind=kind, place=place or "the model", reason=reason)
