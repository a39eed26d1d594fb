"""How much noise each INT8 layer adds to the residual stream it works for, from what one pass over the data showed.

With W' a layer's rounded weight, E = W - W', C the covariance of its input, Δ the input's step, and "branch" and
"total" what its residual add takes from it and gives:

    noise = (tr(E C Eᵀ) + |W'|² Δ²/12) / tr(W C Wᵀ) · var(branch) / var(total)

The first factor is the layer's own relative noise (with |E m|² for the input's mean m, where no bias takes that up),
the second how much of the stream the branch is. Later blocks carry the noise of a stream on much alike. Not counted:
values that the range clips, and what a softmax makes of noise in queries and keys. A layer that works for no residual
add counts with its own noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import LayerDecision, QuantPlan
from gpusq_deploy.calibration import ChannelMoments
from gpusq_deploy.graph import (
    STORED_TYPE,
    GraphLayer,
    Residual,
    RoundedWeight,
    branches_of_nodes,
    rounded_to_nearest,
    weight_rows,
    weighted_layers,
)
from gpusq_deploy.numerics import dequantize, single_threaded_blas, spread


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerStatistics:
    """What is known of the inputs of layers and of the residual streams they work for.

    Attributes:
        moments: Of the layers' inputs, with their covariances, by node.
        shares: var(branch) / var(total), by node of the layers that work for a residual add.
    """

    moments: Mapping[str, ChannelMoments]
    shares: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatisticsRequest:
    """Layers, and by node the residual adds that they work for: what a pass over the data is to look at."""

    layers: tuple[GraphLayer, ...]
    branches: Mapping[str, Residual]

    def tensors(self) -> dict[str, bool]:
        """The layers' inputs, and what the residual adds take and give; True for second moments."""
        streams = {tensor: False for add in self.branches.values() for tensor in (add.branch, add.total)}
        return {**streams, **{layer.input: True for layer in self.layers}}

    def stream(self, seen: Mapping[str, ChannelMoments]) -> LayerStatistics:
        """What was seen of those tensors, by tensor."""
        return LayerStatistics(
            moments={layer.node: seen[layer.input] for layer in self.layers}, shares=self.shares(seen)
        )

    def shares(self, seen: Mapping[str, ChannelMoments]) -> dict[str, float]:
        """var(branch) / var(total), by node, from what was seen of those tensors."""

        def share(residual: Residual) -> float:
            branch, total = (float(seen[tensor].variance.sum()) for tensor in (residual.branch, residual.total))
            return branch / total if total > 0 else 0.0

        return {node: share(residual) for node, residual in self.branches.items()}


def statistics_request(model: ir.Model, layers: Sequence[GraphLayer]) -> StatisticsRequest:
    """What to look at for some of a graph's layers."""
    return StatisticsRequest(layers=tuple(layers), branches=branches_of_nodes(model, {layer.node for layer in layers}))


def residual_noise(
    model: ir.Model, plan: QuantPlan, rounded: Mapping[str, RoundedWeight], stream: LayerStatistics, *, workers: int = 1
) -> dict[str, float]:
    """Noise over signal that each planned INT8 Linear adds to its stream, by node; the equation is the module's.

    Args:
        model: The float graph that the plan is for.
        plan: Its decisions: steps of inputs.
        rounded: Weights that were rounded with regard to the data, by node; the others are rounded to nearest.
        stream: What was seen, for that graph.
        workers: Layers looked at side by side; the result doesn't depend on it.
    """
    decided = {entry.node: entry for entry in plan.layers if entry.precision == "int8" and entry.kind == "linear"}
    layers = [layer for layer in weighted_layers(model) if layer.node in decided]

    def noise(layer: GraphLayer) -> float:
        rows, decision = weight_rows(model, layer).astype(np.float32), decided[layer.node]
        weight = rounded.get(layer.node) or rounded_to_nearest(rows, decision, STORED_TYPE[plan.float_type])
        own = _own_noise(rows, weight, decision, stream.moments[layer.node])
        return own * stream.shares.get(layer.node, 1.0)

    with single_threaded_blas(), ThreadPoolExecutor(workers) as pool:
        return dict(zip((layer.node for layer in layers), pool.map(noise, layers), strict=True))


def _own_noise(
    rows: npt.NDArray[np.float32], weight: RoundedWeight, decision: LayerDecision, moments: ChannelMoments
) -> float:
    assert moments.covariance is not None, "second moments of every layer's input are watched"
    assert decision.activation is not None, "only INT8 layers come here"
    made = dequantize(weight.codes, weight.scale, axis=0)
    signal = spread(rows, moments.covariance)
    noise = spread(rows - made, moments.covariance)
    noise += float(np.vdot(made, made)) * decision.activation.scale**2 / 12
    if weight.bias is None:
        noise += float(np.square((rows - made) @ moments.mean).sum())
    return noise / signal if signal > 0 else 0.0
