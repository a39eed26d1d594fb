"""Fake quantisation of a module, as the Q/DQ graph that gpusq-build writes of it computes.

    x̂ = s · clip(rint(x / s), -128, 127)       one s for the tensor that a layer reads
    ŵ = s_n · clip(rint(w / s_n), -127, 127)   s_n = max|w_n| / 127 for each output channel n

by torch's own operators, whose gradient passes straight through what isn't clipped. The scale of a weight follows the
weight. That of an input starts at what a calibrator chooses and is learned as log s, its gradient times
1/√(elements · 127): LSQ, Esser et al., arXiv 1902.08153.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from gpusq_deploy.artifacts import AMAX, Calibrator, Recipe, Rule, Value
from gpusq_deploy.calibration import Counts, Histogram, counts_of, range_of
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.frontend import array_from_tensor, layer_weights, named_modules
from gpusq_deploy.numerics import INT8_MAX, LayerWeight
from gpusq_deploy.sparsity.pruning.sites import without_fast_path

Layer = torch.nn.Linear | torch.nn.Conv2d


class FloatLayer(Value):
    """A layer that isn't quantised, and why."""

    layer: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class InputScales:
    """The scale of each layer's input, as its logarithm [], which is learned; layers that read one tensor share it."""

    logarithms: Mapping[str, torch.nn.Parameter]

    def parameters(self) -> list[torch.nn.Parameter]:
        """Each once."""
        return list({id(scale): scale for scale in self.logarithms.values()}.values())

    def ranges(self) -> dict[str, float]:
        """The amax of each layer's input, 127 · s, as a checkpoint records it."""
        return {layer: INT8_MAX * float(scale.detach().exp()) for layer, scale in self.logarithms.items()}


class Int8Layers(NamedTuple):
    """The calibrators of the layers that are trained in INT8, by layer; and the layers that aren't."""

    calibrators: Mapping[str, Calibrator]
    kept_float: tuple[FloatLayer, ...]


def int8_layers(module: torch.nn.Module, recipe: Recipe) -> Int8Layers:
    """The layers that a recipe makes INT8, and those that it doesn't or that can't be trained so, with the reason.

    A layer's calibrator is the one that its rule names, amax where it names none.

    Raises:
        GpusqError: There is no layer to quantise.
    """
    calibrators: dict[str, Calibrator] = {}
    kept: list[FloatLayer] = []
    children = dict(named_modules(module))
    for weight in layer_weights(module):
        rule = recipe.rule_for(weight.layer, weight.kind)
        reason = _float_reason(children, weight, rule, recipe)
        if rule is None or reason:
            kept.append(FloatLayer(layer=weight.layer, reason=reason))
        else:
            calibrators[weight.layer] = rule.calibrator_or(AMAX)
    if not calibrators:
        raise GpusqError(
            "the recipe makes no layer INT8 that can be trained", place=f"recipe {recipe.name}", hint="--stage prune"
        )
    return Int8Layers(calibrators, tuple(kept))


def _float_reason(
    children: Mapping[str, torch.nn.Module], weight: LayerWeight, rule: Rule | None, recipe: Recipe
) -> str:
    """Why a layer isn't trained in INT8; empty where it is."""
    if rule is None:
        return f"no rule of recipe {recipe.name} matches it"
    child, parent = children.get(weight.layer), children.get(weight.layer.rpartition(".")[0])
    if rule.precision != "int8":
        return f"recipe {recipe.name} makes it {rule.precision}: {rule.reason}"
    # torch multiplies by out_proj's weight without calling it.
    if isinstance(parent, torch.nn.MultiheadAttention) or not isinstance(child, (torch.nn.Linear, torch.nn.Conv2d)):
        return "nn.MultiheadAttention multiplies by its weight inside"
    return rule.too_short(weight.kind, weight.rows.shape[1])


@dataclass(slots=True)
class _Seen:
    """Of a layer's input: magnitudes counted, and the first pass's tensor, kept so that its place stays its own."""

    counts: Counts | None = None
    amax: float = 0.0
    first: torch.Tensor | None = None


@dataclass(slots=True)
class _Observer:
    seen: dict[str, _Seen] = field(default_factory=dict[str, _Seen])

    def look(self, layer: str, _module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        values = array_from_tensor(inputs[0].detach().float().cpu())
        seen = self.seen.setdefault(layer, _Seen(first=inputs[0]))
        try:
            counts = counts_of(values)
        except ValueError as error:
            raise GpusqError("an activation is NaN or infinite", place=f"the input of {layer}") from error
        seen.counts = counts if seen.counts is None else seen.counts + counts
        seen.amax = max(seen.amax, float(np.abs(values).max(initial=0.0)))

    def tensors(self) -> dict[str, tuple[object, ...]]:
        """What tells one tensor from another, by the layer that reads it."""
        firsts = ((layer, seen.first) for layer, seen in self.seen.items())
        return {layer: (first.data_ptr(), *first.shape) for layer, first in firsts if first is not None}


def observed_scales(
    module: torch.nn.Module, calibrators: Mapping[str, Calibrator], batches: Sequence[torch.Tensor]
) -> InputScales:
    """Scales of layers' inputs, by calibrators.

    Args:
        module: The model; in eval mode meanwhile, and not changed.
        calibrators: Of Linear and Conv2d modules, by name; see `int8_layers`.
        batches: Images, each [n, channels, height, width], on any device.

    Raises:
        GpusqError: An activation is NaN or infinite.
            A layer isn't run, or all that it reads is zero.
    """
    observer, training = _Observer(), module.training
    handles = [
        module.get_submodule(layer).register_forward_pre_hook(partial(observer.look, layer)) for layer in calibrators
    ]
    device = next(module.parameters()).device
    module.eval()
    try:
        with torch.no_grad(), without_fast_path():
            for batch in batches:
                module(batch.to(device))
    finally:
        for handle in handles:
            handle.remove()
        module.train(training)
    return _scales(observer, calibrators, device)


def _scales(observer: _Observer, calibrators: Mapping[str, Calibrator], device: torch.device) -> InputScales:
    idle = [layer for layer in calibrators if layer not in observer.seen]
    if idle:
        raise GpusqError(
            "the module isn't called as the model runs, so its input has no range",
            place=f"layer {idle[0]}",
            hint="leave it float in the recipe",
        )
    silent = [layer for layer in calibrators if not observer.seen[layer].amax]
    if silent:
        raise GpusqError(
            "the layer reads nothing but zeros, so its input has no range",
            place=f"layer {silent[0]}",
            hint="leave it float in the recipe, or give other images",
        )
    tensors, largest = observer.tensors(), dict[tuple[object, ...], float]()
    for layer, calibrator in calibrators.items():
        seen = observer.seen[layer]
        assert seen.counts is not None, "amax and counts are seen together"
        amax = range_of(Histogram(counts=seen.counts, amax=seen.amax), calibrator)
        largest[tensors[layer]] = max(amax, largest.get(tensors[layer], 0.0))
    scales = {
        tensor: torch.nn.Parameter(torch.tensor(math.log(amax / INT8_MAX), device=device))
        for tensor, amax in largest.items()
    }
    return InputScales(logarithms={layer: scales[tensors[layer]] for layer in calibrators})


@contextmanager
def fake_quantized(module: torch.nn.Module, scales: InputScales) -> Generator[None]:
    """While it is active, the scales' layers multiply what INT8 holds of their inputs and weights.

    Args:
        module: The model, whose parameters stay float and are trained.
        scales: Of the inputs of its Linear and Conv2d layers; in bfloat16 and float16 too, which are computed in
            float32.
    """
    changed = [(module.get_submodule(layer), scale) for layer, scale in scales.logarithms.items()]
    for child, scale in changed:
        assert isinstance(child, (torch.nn.Linear, torch.nn.Conv2d)), "scales are of such layers"
        # A module's own attribute goes before its class's method.
        setattr(child, "forward", partial(_forward, child, scale))  # noqa: B010 - mypy refuses to assign a method
    try:
        with without_fast_path():
            yield
    finally:
        for child, _ in changed:
            delattr(child, "forward")


def _forward(layer: Layer, logarithm: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    inputs = quantized_input(values.float(), logarithm.exp()).to(values.dtype)
    weight = quantized_weight(layer.weight.float()).to(values.dtype)
    bias = None if layer.bias is None else layer.bias.to(values.dtype)
    if isinstance(layer, torch.nn.Linear):
        return functional.linear(inputs, weight, bias)
    # It knows the layer's stride, groups and kind of padding.
    conv: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor] = layer._conv_forward  # pyright: ignore[reportPrivateUsage]
    return conv(inputs, weight, bias)


def quantized_input(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What INT8 holds of values [...] with a learned scale []; see the module's equations."""
    factor = 1 / math.sqrt(max(values.numel(), 1) * INT8_MAX)
    zero = torch.zeros_like(scale)
    # torch's own LSQ operator has no public name.
    return torch._fake_quantize_learnable_per_tensor_affine(  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        values, scale.reshape(1), zero.reshape(1), -INT8_MAX - 1, INT8_MAX, factor
    )


def quantized_weight(weight: torch.Tensor) -> torch.Tensor:
    """What INT8 holds of a weight [N, ...], one scale for each of its N rows; see the module's equations."""
    amax = weight.detach().flatten(1).abs().amax(dim=1)
    # A row of zeros stays one with any scale.
    scale = torch.where(amax > 0, amax, torch.ones_like(amax)) / INT8_MAX
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -INT8_MAX, INT8_MAX)
