"""Is it the same function? Run a model with other weights and compare, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch

Tensors = Mapping[str, torch.Tensor]


class TensorRunner:
    """A model and what it answers to one input; other weights are compared with that.

    Args:
        module: The model, which stays as it is.
        tensors: Its weights by name, in the types that they are stored in.
        feed: Its input.
        places: Modules whose outputs will be compared; an empty name is the model itself.
    """

    def __init__(
        self, module: torch.nn.Module, tensors: Tensors, feed: torch.Tensor, places: Sequence[str] = ("",)
    ) -> None:
        self._copy = copy.deepcopy(module).double().eval()
        self._feed = feed.double()
        self._first = self._outputs(tensors, places)

    def difference(self, tensors: Tensors, places: Sequence[str] = ("",)) -> float:
        """Largest difference that other weights make, relative to the largest output of the place; infinite if NaN.

        Args:
            tensors: All weights of the model by name.
            places: Of those that were named at first.
        """
        after = self._outputs(tensors, places)
        pairs = [pair for place in places for pair in zip(self._first[place], after[place], strict=True)]
        return max((_relative(first, second) for first, second in pairs), default=0.0)

    def _outputs(self, tensors: Tensors, places: Sequence[str]) -> dict[str, list[torch.Tensor]]:
        self._copy.load_state_dict(dict(tensors))
        found: dict[str, list[torch.Tensor]] = {place: [] for place in places}

        def keeper(place: str) -> Any:
            def keep(_module: torch.nn.Module, _inputs: object, output: object) -> None:
                found[place].extend(_tensors(output))

            return keep

        hooks = [self._copy.get_submodule(place).register_forward_hook(keeper(place)) for place in places]
        try:
            with torch.no_grad():
                self._copy(self._feed)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _tensors(output: object) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output.detach().clone()
    elif isinstance(output, Mapping):
        for value in cast("Mapping[str, object]", output).values():
            yield from _tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in cast("Sequence[object]", output):
            yield from _tensors(value)


def _relative(first: torch.Tensor, second: torch.Tensor) -> float:
    largest = float(first.abs().max()) if first.numel() else 0.0
    difference = float((first - second).abs().max()) if first.numel() else 0.0
    if math.isnan(difference):
        return math.inf
    return difference / largest if largest else difference
