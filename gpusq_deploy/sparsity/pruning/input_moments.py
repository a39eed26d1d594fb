"""Second moments of a Linear's inputs: all that layer-wise pruning needs to know about the data.

For inputs x [n, K] and, where they are given, wanted outputs y [n, N]:

    m = mean(x)        H = Σ (x - m)ᵀ(x - m) / n        [K, K]
    t = mean(y)        C = Σ (y - t)ᵀ(x - m) / n        [N, K]

so that for any weight W [N, K], with the bias that suits it best (t - W·m), the mean squared output error is
tr(W H Wᵀ) - 2 tr(W Cᵀ) + constant. Without y, the wanted outputs are those of the dense layer: C = W₀ H.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gpusq_deploy.errors import GpusqError

_TILE = 384


@dataclass(frozen=True, kw_only=True, slots=True)
class Moments:
    """See the module. `mean` [K], `gram` H [K, K], `target_mean` [N] and `cross` [N, K], all float32.

    `target_power` is Σ over outputs of mean((y - t)²). The three are None, and 0, where no outputs were wanted.
    """

    count: int
    mean: torch.Tensor
    gram: torch.Tensor
    target_mean: torch.Tensor | None = None
    cross: torch.Tensor | None = None
    target_power: float = 0.0

    @property
    def mean_square(self) -> torch.Tensor:
        """E[x²] per input [K], not centred: the squared norm that activation-weighted pruning uses."""
        return self.gram.diagonal() + self.mean.square()

    def uncentred(self, bias: torch.Tensor | None) -> Moments:
        """The same about zero instead of the means: for a layer whose bias [N] stays as it is, or that has none."""
        gram = self.gram + torch.outer(self.mean, self.mean)
        zero = torch.zeros_like(self.mean)
        if self.cross is None or self.target_mean is None:
            return Moments(count=self.count, mean=zero, gram=gram)
        wanted = self.target_mean if bias is None else self.target_mean - bias
        return Moments(
            count=self.count,
            mean=zero,
            gram=gram,
            target_mean=torch.zeros_like(wanted),
            cross=self.cross + torch.outer(wanted, self.mean),
            target_power=self.target_power + float(wanted.double().square().sum()),
        )


class GramSums:
    """Sums over batches, from which moments follow. Products are float32, sums over batches float64.

    What is summed is the distance from the first batch's means: float32 would lose a small variance beside a large
    mean, and transformers have channels like that. Beside `calibration.ChannelMoments` it knows the products with
    wanted outputs, and runs where the model's tensors are.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sums: dict[str, torch.Tensor] = {}
        self._origins: dict[str, torch.Tensor] = {}

    def add(self, inputs: torch.Tensor, targets: torch.Tensor | None = None) -> None:
        """Add rows.

        Args:
            inputs: [..., K] of any floating type.
            targets: Wanted outputs [..., N] of the same rows, in every call or in none.
        """
        x = self._from_origin("x", inputs)
        self._count += len(x)
        self._add("x", x.sum(dim=0))
        self._add("xx", gram_matrix(x))
        if targets is not None:
            y = self._from_origin("y", targets)
            self._add("y", y.sum(dim=0))
            self._add("yx", y.T @ x)
            self._add("yy", y.square().sum())

    def moments(self) -> Moments:
        """Moments of everything added.

        Raises:
            GpusqError: Nothing was added, or the inputs are not finite.
        """
        if not self._count:
            raise GpusqError("no data reached the layer", hint="give at least one image")
        shift = self._sums["x"] / self._count
        gram = self._sums["xx"] / self._count - torch.outer(shift, shift)
        if not bool(torch.isfinite(gram).all()):
            raise GpusqError("the layer's inputs hold NaN or infinity", hint="check the images and the checkpoint")
        gram.diagonal().clamp_(min=0)
        mean = (self._origins["x"] + shift).float()
        if "y" not in self._sums:
            return Moments(count=self._count, mean=mean, gram=gram.float())
        target_shift = self._sums["y"] / self._count
        cross = self._sums["yx"] / self._count - torch.outer(target_shift, shift)
        return Moments(
            count=self._count,
            mean=mean,
            gram=gram.float(),
            target_mean=(self._origins["y"] + target_shift).float(),
            cross=cross.float(),
            target_power=float(self._sums["yy"] / self._count - target_shift.square().sum()),
        )

    def _from_origin(self, name: str, values: torch.Tensor) -> torch.Tensor:
        rows = values.detach().reshape(-1, values.shape[-1]).float()
        if name not in self._origins and len(rows):
            self._origins[name] = rows.mean(dim=0)
        return rows - self._origins[name] if len(rows) else rows

    def _add(self, name: str, value: torch.Tensor) -> None:
        held = self._sums.get(name)
        self._sums[name] = value.double() if held is None else held.add_(value)


def gram_matrix(x: torch.Tensor) -> torch.Tensor:
    """XᵀX [K, K] of rows [n, K], exactly symmetric; only the blocks on and above the diagonal are multiplied."""
    width = x.shape[1]
    gram = x.new_empty(width, width)
    for start in range(0, width, _TILE):
        stop = min(start + _TILE, width)
        strip = x[:, start:stop].T @ x[:, start:]
        gram[start:stop, start:] = strip
        gram[start:, start:stop] = strip.T
        corner = gram[start:stop, start:stop]
        # A matrix product may round its two triangles differently.
        corner.copy_(torch.triu(corner) + torch.triu(corner, 1).T)
    return gram


def collect_moments(
    module: torch.nn.Module, layers: Sequence[str], batches: Iterable[torch.Tensor]
) -> dict[str, Moments]:
    """Input moments of several layers in one pass over the data, by forward hooks.

    Args:
        module: The model, in eval mode; left as it was.
        layers: Names of Linear modules.
        batches: Model inputs; memory doesn't grow with their number.

    Returns:
        Moments by layer; a layer that the forward pass never called is left out.
    """
    sums = {layer: GramSums() for layer in layers}
    reached: set[str] = set()
    with torch.no_grad(), _input_hooks(module, sums, reached):
        for batch in batches:
            module(batch)
    return {layer: sums[layer].moments() for layer in layers if layer in reached}


@contextmanager
def _input_hooks(
    module: torch.nn.Module, sums: Mapping[str, GramSums], reached: set[str]
) -> Generator[None, None, None]:
    def hook_for(layer: str) -> Any:
        def hook(_child: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            reached.add(layer)
            sums[layer].add(inputs[0])

        return hook

    with ExitStack() as stack:
        for layer in sums:
            stack.callback(module.get_submodule(layer).register_forward_pre_hook(hook_for(layer)).remove)
        yield
