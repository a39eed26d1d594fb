"""From a float graph and data to what the plan needs: the smoothed graph, its ranges, and rounded weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx_ir as ir

from gpusq_deploy.artifacts import AMAX, CalibrationTable, Calibrator, FloatPrecision, QuantPlan, Recipe
from gpusq_deploy.calibration import (
    CalibrationInputs,
    ChannelMoments,
    Counterparts,
    ModelFacts,
    Observed,
    Observing,
    Ranks,
    SimpleForm,
    calibrated,
    known_ranges,
)
from gpusq_deploy.graph import (
    STORED_TYPE,
    AfterPass,
    GraphLayer,
    Moved,
    RoundedWeight,
    Smooth,
    SmoothedTensor,
    moved_tensors,
    run_passes,
    weighted_layers,
)
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize.int8_outputs import Int8Outputs
from gpusq_deploy.quantize.noise_model import LayerStatistics, StatisticsRequest, statistics_request
from gpusq_deploy.quantize.smoothing import (
    decide_smoothing,
    moments_behind,
    places_to_smooth,
    rule_of,
    table_behind,
    with_headroom,
)
from gpusq_deploy.quantize.weight_rounding import round_weights
from gpusq_deploy.text import by_reason, counted, some


@dataclass(frozen=True, kw_only=True, slots=True)
class SmoothedGraph:
    """A float graph ready to be planned and quantised.

    Attributes:
        model: Computes what the exported graph computes, with smoothed activations.
        layers: Its weighted layers.
        table: Ranges of the activations that are to be quantised.
        moments: By node, of the inputs of the layers whose weights or biases need them, in that graph.
        stream: For a mixed recipe, what was seen of residual streams; None where ranges were given.
        moved: Tensors that smoothing changed, by name; see `moved_tensors`.
    """

    model: ir.Model
    layers: tuple[GraphLayer, ...]
    table: CalibrationTable
    moments: Mapping[str, ChannelMoments]
    stream: LayerStatistics | None = None
    moved: Mapping[str, Moved | None] = field(default_factory=dict[str, "Moved | None"])


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantRequest:
    """What is to be quantised and how; `outputs` None leaves the outputs of layers alone, whatever the recipe says.

    `simple` is the form of the graph that is calibrated; None: the graph itself. `after` hears the smoothing.
    """

    layers: tuple[GraphLayer, ...]
    recipe: Recipe
    calibrators: Mapping[str, Calibrator]
    remainder: FloatPrecision
    outputs: Int8Outputs | None = None
    simple: SimpleForm | None = None
    after: AfterPass | None = None


def smooth_and_observe(
    model: ir.Model, wanted: QuantRequest, data: CalibrationInputs, subject: ModelFacts, reporter: Reporter
) -> SmoothedGraph:
    """Look at the data once, smooth the graph, and say which ranges its activations have then.

    Ranges that were found before are those of the graph as it is: with them nothing is smoothed or widened, and no data
    says how weights should be rounded.

    Args:
        model: The canonical float graph; left as it is.
        wanted: Layers, recipe and calibrators.
        data: Samples, or ranges found before.
        subject: May record ranges.
        reporter: Hears what is smoothed, what isn't, and why.
    """
    simple = wanted.simple or SimpleForm(model=model)
    before = simple.counterparts(wanted.layers)
    calibrators = {before.input_of(layer): wanted.calibrators.get(layer.input, AMAX) for layer in wanted.layers}
    if data.given or subject.ranges:
        known = known_ranges(simple.model, before.layers, data, subject, calibrators, reporter)
        if any(rule_of(wanted.recipe, layer).refined for layer in wanted.layers):
            reporter.say("ranges were given: activations are not smoothed, weights are rounded to nearest")
        table = before.carried(known, wanted.layers)
        return SmoothedGraph(model=model, layers=weighted_layers(model), table=table, moments={})
    places, declined = places_to_smooth(model, wanted.layers, wanted.recipe, wanted.calibrators)
    watch = (
        None if wanted.recipe.mixed is None else statistics_request(simple.model, before.layers_of(_mixable(wanted)))
    )
    watched = _channels_to_watch(wanted, [place.tensor for place in places])
    moments = {before.input_of(layer): watched[layer.input] for layer in wanted.layers if layer.input in watched}
    if watch is not None:
        moments |= watch.tensors()
    how = Observing(
        calibrators=calibrators,
        preprocessing=subject.preprocessing,
        workers=Ranks().adders() if moments else Ranks().workers(),
        moments=moments,
    )
    seen = calibrated(simple.model, before.layers, data.calibrate, subject, how, reporter)
    smoothed = decide_smoothing(
        model,
        places,
        before.moments(seen.moments, wanted.layers),
        wanted.recipe,
        stored=STORED_TYPE[wanted.remainder],
    )
    _say(smoothed, declined, reporter)
    return _smooth(model, wanted, smoothed, _Seen(found=seen, before=before, watch=watch))


class _Seen(NamedTuple):
    """What one look at the data found, in the simple form."""

    found: Observed
    before: Counterparts
    watch: StatisticsRequest | None


def _smooth(model: ir.Model, wanted: QuantRequest, smoothed: tuple[SmoothedTensor, ...], seen: _Seen) -> SmoothedGraph:
    """The smoothed graph, with what becomes of what was seen."""
    ready = run_passes(model, [Smooth(smoothed)], after=wanted.after)
    layers = weighted_layers(ready)
    found = moments_behind(seen.before.moments(seen.found.moments, wanted.layers), smoothed)
    now = {layer.node: layer for layer in layers}
    inside = {layer.input: now[layer.node].input for layer in wanted.layers}
    return SmoothedGraph(
        model=ready,
        layers=layers,
        table=with_headroom(
            table_behind(seen.before.carried(seen.found.table, wanted.layers), smoothed, found, inside),
            [now[layer.node] for layer in wanted.layers],
            wanted.recipe,
            smoothed,
            {inside[tensor]: calibrator for tensor, calibrator in wanted.calibrators.items() if tensor in inside},
        ),
        moments={layer.node: found[layer.input] for layer in wanted.layers if layer.input in found},
        stream=_stream(wanted, seen, found),
        moved=moved_tensors(model, smoothed),
    )


def _stream(wanted: QuantRequest, seen: _Seen, found: Mapping[str, ChannelMoments]) -> LayerStatistics | None:
    """What a mixed recipe needs: moments behind the smoothing, and shares, which smoothing leaves alone."""
    if seen.watch is None:
        return None
    mixable, shares = _mixable(wanted), seen.watch.shares(seen.found.moments)
    return LayerStatistics(
        moments={layer.node: found[layer.input] for layer in mixable},
        shares={
            layer.node: shares[part.node]
            for layer in mixable
            for part in seen.before.by_node[layer.node][:1]
            if part.node in shares
        },
    )


def rounded_weights(ready: SmoothedGraph, plan: QuantPlan, recipe: Recipe) -> dict[str, RoundedWeight]:
    """Weights that are rounded with regard to the data, by node."""
    return round_weights(ready.model, ready.layers, plan, ready.moments, recipe, workers=Ranks().adders())


def _mixable(wanted: QuantRequest) -> list[GraphLayer]:
    """Layers that a mixed recipe may leave float."""
    linear = (layer for layer in wanted.layers if layer.kind == "linear")
    return [layer for layer in linear if rule_of(wanted.recipe, layer).precision == "int8"]


def _channels_to_watch(wanted: QuantRequest, smoothed: Sequence[str]) -> dict[str, bool]:
    """Activations to smooth, and those whose readers' weights or biases depend on the data; True for second moments."""
    linear = [layer for layer in wanted.layers if layer.kind == "linear" and not layer.only_seen]
    second_order = {layer.input for layer in linear if rule_of(wanted.recipe, layer).rounding == "second-order"}
    biased = {layer.input for layer in linear if rule_of(wanted.recipe, layer).correct_bias}
    tensors = {*smoothed, *second_order, *biased}
    return {layer.input: layer.input in second_order for layer in linear if layer.input in tensors}


def _say(smoothed: Sequence[SmoothedTensor], declined: Sequence[tuple[str, str]], reporter: Reporter) -> None:
    if smoothed:
        reporter.say(f"smoothed {counted(len(smoothed), 'activation')}")
    for reason, layers in by_reason(declined).items():
        reporter.say(f"not smoothed: the input of {some(layers, 1)}: {reason}")
