"""What the deciders need to see of a float graph, before anything is decided; and what smoothing makes of it.

Everything is seen on the graph as it is. What smoothing does to a tensor is arithmetic on its channels' lowest and
highest values: x' = (x - z) / s for activations and values, and y' = y - W·z for a product that lacks its bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import Recipe
from gpusq_deploy.calibration import ChannelMoments, Needs, RangeNeed, needs_of_layers
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import (
    GraphLayer,
    Smoothable,
    SmoothedTensor,
    ValueChannels,
    bias_place,
    value_name,
    weight_rows,
    weighted_layers,
)
from gpusq_deploy.quantize.int8_outputs import Int8Outputs, output_candidates, output_site
from gpusq_deploy.quantize.noise_model import statistics_request
from gpusq_deploy.quantize.quant_request import QuantRequest
from gpusq_deploy.quantize.sites import (
    QdqSite,
    attentions_to_quantize,
    residual_sites,
    residuals_to_quantize,
    sites_of,
)
from gpusq_deploy.quantize.smoothing import places_to_smooth, rule_of


def observations_needed(model: ir.Model, request: QuantRequest) -> Needs:
    """All that the deciders of a request ask to see of a float graph.

    Where ranges were found before, neither they nor what smoothing and rounding ask are needed.
    """
    recipe, layers = request.recipe, request.layers
    needs = Needs(magnitudes=request.float_type == "fp16") | int4_needs(model, recipe)
    if not layers:
        return needs
    needs = needs | mixed_needs(model, layers, recipe)
    places: tuple[Smoothable, ...] = ()
    if request.known is None:
        places, _ = places_to_smooth(model, layers, recipe, request.calibrators)
        needs = needs | needs_of_layers(layers, request.calibrators) | rounding_needs(layers, places, recipe)
    return needs | site_needs(model, places, recipe) | output_needs(model, recipe, request.outputs)


def require_data(needs: Needs, recipe: Recipe, *, mixed: bool) -> None:
    """Refuse a recipe that needs to see data where there is none; magnitudes and INT4 rounding do without.

    Raises:
        GpusqError: Says what needs it.
    """
    what = ""
    if needs.ranges:
        placed = recipe.attention is not None or recipe.residual is not None
        who = "a placement beyond layers needs" if placed else "INT8 outputs need"
        what = f"{who} ranges that neither the checkpoint nor --ranges holds"
    elif mixed:
        what = "a mixed recipe measures what each layer costs, and there is no data to measure on"
    if what:
        raise GpusqError(what, place=f"recipe {recipe.name}", hint="add --calib FOLDER")


def rounding_needs(layers: Sequence[GraphLayer], places: Sequence[Smoothable], recipe: Recipe) -> Needs:
    """Channels of activations to smooth, and of those whose readers' weights or biases depend on the data."""
    linear = [layer for layer in layers if layer.kind == "linear" and not layer.only_seen]
    second_order = {layer.input for layer in linear if rule_of(recipe, layer).rounding == "second-order"}
    biased = {layer.input for layer in linear if rule_of(recipe, layer).correct_bias}
    tensors = {*(place.tensor for place in places), *second_order, *biased}
    return Needs(moments={layer.input: layer.input in second_order for layer in linear if layer.input in tensors})


def int4_needs(model: ir.Model, recipe: Recipe) -> Needs:
    """Second moments of the inputs of layers whose INT4 weights are rounded with regard to the data."""
    rules = ((layer, recipe.rule_for(layer.layer, layer.kind)) for layer in weighted_layers(model))
    refined = (layer for layer, rule in rules if rule is not None and rule.precision == "int4" and rule.refined)
    return Needs(moments={layer.input: True for layer in refined})


def mixed_needs(model: ir.Model, layers: Sequence[GraphLayer], recipe: Recipe) -> Needs:
    """What a mixed recipe compares layers by: their inputs, and the residual streams they work for."""
    if recipe.mixed is None:
        return Needs()
    return Needs(moments=statistics_request(model, mixable(layers, recipe)).tensors())


def mixable(layers: Sequence[GraphLayer], recipe: Recipe) -> list[GraphLayer]:
    """Layers that a mixed recipe may leave float."""
    return [layer for layer in layers if layer.kind == "linear" and rule_of(recipe, layer).precision == "int8"]


def site_needs(model: ir.Model, places: Sequence[Smoothable], recipe: Recipe) -> Needs:
    """Ranges of attentions' operands and residual adds; of values that smoothing scales also the channels."""
    attentions = attentions_to_quantize(model, recipe)
    sites = (*sites_of(attentions, recipe), *residual_sites(residuals_to_quantize(model, recipe), recipe))
    written = {value_name(answer) for _, answer in _writers(model, places)} if sites else set[str]()
    return Needs(
        ranges={site.tensor: RangeNeed(label=f"{site.module}, {site.role}") for site in sites},
        moments=dict.fromkeys(written, False),
    )


def output_needs(model: ir.Model, recipe: Recipe, outputs: Int8Outputs | None) -> Needs:
    """Channels of the products that may be written in INT8."""
    if outputs is None:
        return Needs()
    candidates = output_candidates(weighted_layers(model), recipe, outputs.sparsity, outputs.wish)
    sites = [site for layer in candidates if (site := output_site(model, layer)) is not None]
    return Needs(
        ranges={site.tensor: RangeNeed(label=f"{site.module}, output") for site in sites},
        moments={site.tensor: False for site in sites},
    )


def value_amax(
    model: ir.Model, context: str, smoothed: Sequence[SmoothedTensor], moments: Mapping[str, ChannelMoments]
) -> float | None:
    """The largest magnitude of an attention's smoothed values; None where they aren't smoothed.

    Args:
        model: The graph before the smoothing.
        context: The node of the product of softmax and values.
        smoothed: The smoothing.
        moments: By tensor, what was seen of the answers of the layers that write values.
    """
    nodes = {node.name: node for node in model.graph}
    reads = {value_name(value) for value in nodes[context].outputs}
    for tensor in smoothed:
        values = tensor.place.values
        if values is None or not _comes_from(nodes[tensor.place.readers[0].node].inputs[0], reads):
            continue
        found = moments[value_name(_answer(nodes[values.writer]))]
        channels = list(values.channels)
        low, high = found.low[channels].astype(np.float64), found.high[channels].astype(np.float64)
        return _largest(low, high, tensor.smoothing.offset, tensor.smoothing.factor)
    return None


def product_amax(
    model: ir.Model, site: QdqSite, smoothed: Sequence[SmoothedTensor], moments: Mapping[str, ChannelMoments]
) -> float:
    """The largest magnitude of a layer's product, without its bias, behind the smoothing.

    Args:
        model: The graph before the smoothing.
        site: The product.
        smoothed: The smoothing.
        moments: By tensor, what was seen of the products.
    """
    found = moments[site.tensor]
    factor = np.ones(len(found.low))
    shift: npt.NDArray[np.float64] = np.zeros(len(found.low))
    layer = next(layer for layer in weighted_layers(model) if layer.node == site.node)
    for tensor in smoothed:
        if any(reader.node == site.node for reader in tensor.place.readers) and tensor.smoothing.offset.any():
            shift = weight_rows(model, layer).astype(np.float64) @ tensor.smoothing.offset.astype(np.float64)
        values = tensor.place.values
        if values is not None and values.writer == site.node:
            factor[list(values.channels)] = tensor.smoothing.factor
    return _largest(found.low.astype(np.float64), found.high.astype(np.float64), shift, factor)


def _largest(
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    offset: npt.NDArray[np.floating],
    factor: npt.NDArray[np.floating],
) -> float:
    """Max |(x - z) / s| over channels whose values lie between `low` and `high`."""
    return float(max(np.abs((low - offset) / factor).max(), np.abs((high - offset) / factor).max()))


def _writers(model: ir.Model, places: Sequence[Smoothable]) -> Iterator[tuple[ValueChannels, ir.Value]]:
    """Who writes the values of attentions that are to be smoothed, and what it answers."""
    nodes = {node.name: node for node in model.graph}
    for place in places:
        if place.values is not None:
            yield place.values, _answer(nodes[place.values.writer])


def _answer(layer: ir.Node) -> ir.Value:
    """What a layer answers, with its bias."""
    place = bias_place(layer)
    return (layer if place is None else place[0]).outputs[0]


def _comes_from(value: ir.Value | None, tensors: set[str]) -> bool:
    """Whether a value is one of some tensors, moved."""
    while value is not None:
        if value.name in tensors:
            return True
        producer = value.producer()
        value = None if producer is None or not producer.inputs else producer.inputs[0]
    return False
