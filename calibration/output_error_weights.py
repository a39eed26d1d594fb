"""What an error in each input channel of a layer costs at its output: the weights of the output-error calibrator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.calibration.histogram import Counts
from gpusq_deploy.graph import GraphLayer, array_of, node_name

# Whole numbers, so that weighted counts add up exactly; the heaviest channel gets this many.
_FULL = 2**20


def column_weights(model: ir.Model, layers: Sequence[GraphLayer]) -> Counts:
    """Squared norm of each input channel's weights, in parts of 2²⁰ of the largest, shaped to broadcast.

    An error e of an input x costs |W·e|² = Σ over channels c of |W_c|²·e_c², plus products of different channels'
    errors, which rounding leaves uncorrelated and which are left out. Layers that read one tensor add up; a
    convolution's norm runs over its kernel positions too.

    Args:
        model: The graph.
        layers: Every observed layer that reads the tensor.

    Returns:
        int64 [K] for Linear layers, [channels, 1, 1] for a convolution. All ones where every weight is zero.
    """
    nodes = {node_name(node): node for node in model.graph}
    norms = sum(_norms(model, layer, nodes[layer.node]) for layer in layers)
    array = np.asarray(norms, dtype=np.float64)
    largest = float(array.max(initial=0.0))
    whole = np.rint(array / largest * _FULL) if largest else np.ones_like(array)
    spatial = (1,) * (array_of(model.graph.initializers[layers[0].weight]).ndim - 2)
    return whole.astype(np.int64).reshape(-1, *spatial)


def _norms(model: ir.Model, layer: GraphLayer, node: ir.Node) -> npt.NDArray[np.float64]:
    weight = array_of(model.graph.initializers[layer.weight]).astype(np.float64)
    if layer.kind == "linear":
        return _sums(weight**2, (layer.channel_axis,))
    groups = node.attributes.get_int("group", 1)
    # [outputs, channels of a group, …]: the outputs of one group see its channels alone.
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return _sums(grouped**2, (1, 3)).reshape(-1)


def _sums(values: npt.NDArray[np.float64], axes: tuple[int, ...]) -> npt.NDArray[np.float64]:
    sums: npt.NDArray[np.float64] = np.sum(values, axis=axes)
    return sums
