"""What calibration decides beyond ranges: how activations are smoothed, and how weights are rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import AMAX, CalibrationTable, Calibrator, Recipe, Rule, TensorRange
from gpusq_deploy.calibration import ChannelMoments
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import (
    GraphLayer,
    Smoothable,
    SmoothedTensor,
    find_smoothable,
    weight_rows,
)
from gpusq_deploy.numerics import (
    Smoothing,
    balanced,
    cautious,
    one_sided,
)


def rule_of(recipe: Recipe, layer: GraphLayer) -> Rule:
    """The rule that wants a layer in INT8; only such layers come here."""
    rule = recipe.rule_for(layer.layer, layer.kind)
    assert rule is not None, "layers that no rule matches stay float"
    return rule


def places_to_smooth(
    model: ir.Model, layers: Sequence[GraphLayer], recipe: Recipe, calibrators: Mapping[str, Calibrator]
) -> tuple[tuple[Smoothable, ...], tuple[tuple[str, str], ...]]:
    """Activations that the recipe wants smoothed and that can be; the rest by layer, with the reason.

    A tensor whose range isn't its largest magnitude is declined: that range is chosen on the values as they are.
    """
    wanted = [layer for layer in layers if rule_of(recipe, layer).smooth]
    usual = [layer for layer in wanted if calibrators.get(layer.input, AMAX) == AMAX]
    places, declined = find_smoothable(model, usual)
    others = tuple((layer.layer, "its calibrator isn't amax") for layer in wanted if layer not in usual)
    return places, (*declined, *others)


def decide_smoothing(
    model: ir.Model,
    places: Sequence[Smoothable],
    moments: Mapping[str, ChannelMoments],
    recipe: Recipe,
    *,
    stored: npt.DTypeLike,
) -> tuple[SmoothedTensor, ...]:
    """Factors and offsets; see `numerics.smoothing`. `stored` is the type that the graph's scales will have."""
    return tuple(
        SmoothedTensor(place=place, smoothing=_smoothing(model, place, moments[place.tensor], recipe, stored))
        for place in places
    )


def with_headroom(
    table: CalibrationTable,
    layers: Sequence[GraphLayer],
    recipe: Recipe,
    smoothed: Sequence[SmoothedTensor],
    calibrators: Mapping[str, Calibrator],
) -> CalibrationTable:
    """The table with the recipe's headroom, and the ranges that the smoothing fixed; origins say so.

    A range that a calibrator chose below the largest magnitude is left as it is.

    Args:
        table: Ranges found on the smoothed graph, of the inputs of `layers`.
        layers: Layers of that graph.
        recipe: Its rules.
        smoothed: How it was smoothed.
        calibrators: By tensor of that graph.
    """
    kinds = {layer.node: tensor for tensor in smoothed for layer in tensor.place.readers}
    readers: dict[str, list[GraphLayer]] = {}
    for layer in layers:
        readers.setdefault(layer.input, []).append(layer)
    return msgspec.structs.replace(
        table,
        ranges=tuple(
            _widened(entry, readers[entry.tensor], recipe, kinds)
            if calibrators.get(entry.tensor, AMAX) == AMAX
            else entry
            for entry in table.ranges
        ),
    )


def moments_behind(
    moments: Mapping[str, ChannelMoments], smoothed: Sequence[SmoothedTensor]
) -> dict[str, ChannelMoments]:
    """What becomes of every activation's moments, by its name before the smoothing: x' = (x - z) / s where it is."""
    how = {tensor.place.tensor: tensor.smoothing for tensor in smoothed}
    return {name: _moved(found, how[name]) if name in how else found for name, found in moments.items()}


def table_behind(
    table: CalibrationTable,
    smoothed: Sequence[SmoothedTensor],
    moments: Mapping[str, ChannelMoments],
    names: Mapping[str, str],
) -> CalibrationTable:
    """The ranges of a graph after its smoothing.

    Args:
        table: Ranges before it.
        smoothed: The smoothing; of these tensors the range is the largest magnitude.
        moments: After it, by the tensors' names before it.
        names: Tensors' names after it by those before it.
    """
    changed = {tensor.place.tensor for tensor in smoothed}
    ranges: list[TensorRange] = []
    for entry in table.ranges:
        if entry.tensor in changed:
            found = moments[entry.tensor]
            amax = float(max(np.abs(found.low).max(), np.abs(found.high).max()))
            entry = msgspec.structs.replace(entry, amax=amax)
        ranges.append(msgspec.structs.replace(entry, tensor=names[entry.tensor]))
    return msgspec.structs.replace(table, ranges=tuple(ranges))


def _moved(moments: ChannelMoments, smoothing: Smoothing) -> ChannelMoments:
    factor, offset = smoothing.factor.astype(np.float64), smoothing.offset.astype(np.float64)
    inverse = (1 / factor).astype(np.float32)
    covariance = None
    if moments.covariance is not None:
        covariance = moments.covariance * inverse[:, None]
        covariance *= inverse
    return ChannelMoments(
        low=((moments.low - offset) / factor).astype(np.float32),
        high=((moments.high - offset) / factor).astype(np.float32),
        mean=(moments.mean - offset) / factor,
        variance=moments.variance / np.square(factor),
        covariance=covariance,
    )


def _headroom(readers: Sequence[GraphLayer], recipe: Recipe) -> float:
    """Layers that read one tensor have one range: the widest that their rules want."""
    return max(rule_of(recipe, layer).headroom for layer in readers)


def _smoothing(
    model: ir.Model, place: Smoothable, moments: ChannelMoments, recipe: Recipe, stored: npt.DTypeLike
) -> Smoothing:
    if place.producer == "gelu":
        headroom = _headroom(place.readers, recipe)
        try:
            return one_sided(moments.low, moments.high, headroom=headroom, centre=place.shiftable, stored=stored)
        except ValueError as error:
            what = f"the activation can't be quantised: {error}"
            raise GpusqError(what, place=f"tensor {place.tensor}", hint="build with --bf16 or --fp32") from error
    columns = [np.max(np.abs(weight_rows(model, layer)), axis=0) for layer in place.readers]
    rule = cautious if place.producer == "attention" else balanced
    return rule(moments.low, moments.high, np.max(columns, axis=0), centre=place.shiftable)


def _widened(
    entry: TensorRange, readers: Sequence[GraphLayer], recipe: Recipe, smoothed: Mapping[str, SmoothedTensor]
) -> TensorRange:
    tensor = smoothed.get(readers[0].node)
    origin = entry.origin if tensor is None else f"{entry.origin}, smoothed behind its {tensor.place.producer}"
    if tensor is not None and tensor.smoothing.amax is not None:
        return msgspec.structs.replace(entry, amax=tensor.smoothing.amax, origin=f"{origin}, centred, with headroom")
    headroom = _headroom(readers, recipe)
    if headroom:
        origin = f"{origin}, {100 * headroom:g} % headroom"
    return msgspec.structs.replace(entry, amax=entry.amax * (1 + headroom), origin=origin)
