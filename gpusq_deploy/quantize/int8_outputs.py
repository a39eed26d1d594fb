"""INT8 outputs of Linear layers: which layers, at what predicted cost, and why not the others.

TensorRT-RTX 1.7's sparse INT8 kernels for SM80 and SM86 write INT8, by their names, and its compiler lets a product
write INT8 only where a quantiser stands directly behind it and its weight has one scale (benchmarks/gpu/cases.py).
That costs accuracy twice. Both costs of y = W x, x with mean μ and covariance Σ, are predicted from calibration:

    signal   S = Σ_n (w_n Σ w_nᵀ + (w_n μ)²)                 what the layer computes
    weights  E = Σ_n (e_n Σ e_nᵀ + (e_n μ)²), e = w - ŵ      one scale, rounded to nearest
    output   Q = N (amax / 127)² / 12                        a step's variance, N channels
    decibels   10 log10(S / (E + Q))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import Recipe, SparsityReport
from gpusq_deploy.calibration import ChannelMoments
from gpusq_deploy.graph import GraphLayer, weight_rows
from gpusq_deploy.numerics import INT8_MAX, dequantize, quantize, scale_from_amax
from gpusq_deploy.quantize.sites import Int8OutputDecision, Int8OutputRequest, QdqSite

# Below this, TensorRT's maintainers see nothing in sparse kernels (NVIDIA/TensorRT issues 3849 and 4065).
LEAST_CHANNELS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8Outputs:
    """What is asked of layers' outputs: the command's wish, and which layers are to run sparse."""

    wish: Int8OutputRequest | None
    sparsity: SparsityReport


def output_candidates(
    layers: Sequence[GraphLayer], recipe: Recipe, sparsity: SparsityReport, wish: Int8OutputRequest | None
) -> tuple[GraphLayer, ...]:
    """INT8 layers whose output the recipe wants in INT8, or the command where the recipe doesn't say.

    The command speaks of layers that are to run sparse; the recipe of whichever it names.
    """
    sparse = {state.layer for state in sparsity.layers if state.valid and state.expected}
    found: list[GraphLayer] = []
    for layer in layers:
        rule = recipe.rule_for(layer.layer, layer.kind)
        if rule is None or rule.precision != "int8" or rule.too_short(layer.kind, layer.k):
            continue
        if rule.output == "int8" or (rule.output is None and wish is not None and layer.layer in sparse):
            found.append(layer)
    return tuple(found)


def output_site(model: ir.Model, layer: GraphLayer) -> QdqSite | None:
    """What would be quantised for a layer; None where nothing can stand between its product and its bias.

    Declined: whatever isn't a MatMul (a Gemm holds its bias), and a product that the graph returns.
    """
    node = next(node for node in model.graph if node.name == layer.node)
    value = node.outputs[0]
    if node.op_type != "MatMul" or layer.only_seen or value.is_graph_output() or value.name is None:
        return None
    return QdqSite(module=layer.layer, node=layer.node, role="output", tensor=value.name, reason="")


def choose_outputs(
    model: ir.Model,
    candidates: Sequence[GraphLayer],
    recipe: Recipe,
    wish: Int8OutputRequest | None,
    found: tuple[Mapping[str, float], Mapping[str, ChannelMoments]],
) -> tuple[Int8OutputDecision, ...]:
    """Decide for each candidate. What the recipe says is done; what the command asked, where it pays and holds.

    Args:
        model: The smoothed graph.
        candidates: Its layers in question.
        recipe: May speak of their outputs.
        wish: The command's; None where it asked nothing.
        found: Largest magnitudes by tensor, and moments of the layers' inputs by node, of that graph.
    """
    amax, moments = found
    return tuple(_choice(model, layer, recipe, wish, amax, moments) for layer in candidates)


def predicted_db(rows: npt.NDArray[np.float32], moments: ChannelMoments, amax: float) -> float:
    """Decibels that an INT8 output leaves of a layer's own signal, by the module's equations.

    Args:
        rows: Weight [N, K].
        moments: Of the input [..., K], with its covariance.
        amax: Of the output, before the bias.

    Raises:
        ValueError: There is no covariance.
    """
    if moments.covariance is None:
        raise ValueError("the input's covariance wasn't kept")
    scale = np.full(len(rows), scale_from_amax(float(np.abs(rows).max())), np.float32)
    error = rows - dequantize(quantize(rows, scale, axis=0), scale, axis=0)
    noise = _power(error, moments) + len(rows) * (amax / INT8_MAX) ** 2 / 12
    signal = _power(rows, moments)
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else -math.inf


def _power(rows: npt.NDArray[np.floating], moments: ChannelMoments) -> float:
    assert moments.covariance is not None, "the caller has looked"
    wide = rows.astype(np.float64)
    spread = np.einsum("nk,nk->", wide @ moments.covariance.astype(np.float64), wide)
    return float(spread + np.square(wide @ moments.mean).sum())


def _choice(
    model: ir.Model,
    layer: GraphLayer,
    recipe: Recipe,
    wish: Int8OutputRequest | None,
    amax: Mapping[str, float],
    moments: Mapping[str, ChannelMoments],
) -> Int8OutputDecision:
    rule = recipe.rule_for(layer.layer, layer.kind)
    assert rule is not None, "candidates have a rule"
    site = output_site(model, layer)
    largest = 0.0 if site is None else amax.get(site.tensor, 0.0)
    seen = moments.get(layer.node)
    decibels = None
    if largest > 0 and seen is not None and seen.covariance is not None:
        decibels = predicted_db(weight_rows(model, layer).astype(np.float32), seen, largest)
    cost = "its cost isn't predicted" if decibels is None else f"predicted {decibels:.1f} dB of its own signal"
    refusal = "its output is zero on all calibration data" if largest == 0 else ""
    if site is None:
        refusal = "a quantiser can't stand between its GEMM and its bias"
    if rule.output == "int8":
        reason = f"recipe {recipe.name}: output = int8, {cost}"
    else:
        assert wish is not None, "without --sparse-outputs only the recipe's layers are candidates"
        refusal = refusal or _why_not(layer, decibels, wish)
        reason = f"--sparse-outputs: {cost}, at least {wish.least_db:g}; K = {layer.k}, N = {layer.n}"
    return Int8OutputDecision(
        layer=layer.layer,
        node=layer.node,
        tensor="" if site is None else site.tensor,
        chosen=not refusal,
        reason=refusal or reason,
    )


def _why_not(layer: GraphLayer, decibels: float | None, wish: Int8OutputRequest) -> str:
    """Why the command's wish isn't done for a layer where it could be; empty where it is."""
    if min(layer.k, layer.n) < LEAST_CHANNELS:
        return f"K = {layer.k} and N = {layer.n}: below {LEAST_CHANNELS} channels sparse kernels hardly pay"
    if decibels is None:
        return 'its rule keeps no second moments (rounding = "second-order") to predict the cost from'
    if decibels < wish.least_db:
        return f"predicted {decibels:.1f} dB of its own signal, below {wish.least_db:g}"
    return ""
