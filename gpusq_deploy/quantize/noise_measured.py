"""What each INT8 layer alone does to the model's output, measured by running it.

One float graph, in which every layer in question can be switched: its weight and bias are inputs, and a switch puts a
Q/DQ pair in front of it. It runs once with nothing switched, and once for each layer with that one quantised.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.artifacts import LayerDecision, QuantPlan
from gpusq_deploy.calibration import Batches, DataSource, filled
from gpusq_deploy.engines import Session, open_onnx
from gpusq_deploy.graph import (
    STORED_TYPE,
    GraphLayer,
    RoundedWeight,
    SampleAxes,
    add_initializer,
    array_of,
    bias_place,
    insert_before,
    node_name,
    rounded_to_nearest,
    sample_axes,
    scratch_model,
    static_batch,
    weight_rows,
    weighted_layers,
)
from gpusq_deploy.numerics import dequantize, is_floating

_BATCH = 4

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Switched:
    """A layer's own inputs in the switched graph, as a float layer and, made when they are needed, as an INT8 one."""

    node: str
    plain: Mapping[str, Array]
    quantised: Callable[[], Mapping[str, Array]]


def noise_of_layers(
    model: ir.Model,
    plan: QuantPlan,
    rounded: Mapping[str, RoundedWeight],
    source: DataSource,
    progress: Callable[[int, int], None],
    *,
    nodes: Collection[str],
) -> dict[str, float]:
    """Σ(y' - y)² / Σy² of the first output of floats, by node of each of the layers that was quantised alone.

    Of a model that answers integers alone it is the share of the first output's values that change.

    Args:
        model: The float graph that the plan is for; left as it is.
        plan: Decisions; inputs' scales are taken from there.
        rounded: Weights that were rounded with regard to the data, by node; the others are rounded to nearest.
        source: Samples to run; the graph's static batch, or 4, at a time. Each counts once, also where a short batch is
            filled up to a static one.
        progress: Hears how many of the runs are done, fewer in all where samples can't be read.
        nodes: Planned INT8 Linears.
    """
    decided = {decision.node: decision for decision in plan.layers if decision.node in nodes}
    copy = model.clone()
    stored = STORED_TYPE[plan.float_type]
    switched = [
        _switch(copy, layer, decided[layer.node], rounded.get(layer.node), stored)
        for layer in weighted_layers(model)
        if layer.node in decided
    ]
    common.RemoveUnusedNodesPass()(copy)  # the weights: they are inputs now
    fixed = static_batch(model.graph)
    size, axes = fixed or _BATCH, sample_axes(copy.graph)
    noise, signal = dict.fromkeys((entry.node for entry in switched), 0.0), 0.0
    with scratch_model(copy) as path, closing(open_onnx(path)) as session:
        total = math.ceil(len(source) / size) * len(switched)
        runs = itertools.count(1)
        own = {name: array for entry in switched for name, array in entry.plain.items()}
        for batch in Batches(source=source, size=size):
            plain = {**own, session.inputs[0].name: filled(batch, fixed)}
            axes = _closed(axes, session, plain)
            reference, answers = _answers(session, plain, switched, axes, len(batch))
            signal += _power(reference) if is_floating(reference) else reference.size
            for node, answer in answers:
                noise[node] += _noise(reference, answer)
                progress(next(runs), total)
    return {node: found / signal if signal else 0.0 for node, found in noise.items()}


def _power(values: Array) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _noise(reference: Array, answer: Array) -> float:
    """Σ(y' - y)² of floats; of integers and booleans the number of those that changed."""
    return _power(answer - reference) if is_floating(answer) else float(np.count_nonzero(answer != reference))


def _closed(axes: SampleAxes, session: Session, plain: Mapping[str, Array]) -> SampleAxes:
    """Which axes are of samples, also where shapes leave it open: found by the batch turned by one sample."""
    if not axes.open:
        return axes
    name = session.inputs[0].name
    turned = {**plain, name: np.roll(plain[name], -1, axis=0)}
    return axes.found(session.run(plain), session.run(turned), len(plain[name]))


def _answers(
    session: Session, plain: Mapping[str, Array], switched: Sequence[Switched], axes: SampleAxes, samples: int
) -> tuple[Array, Iterator[tuple[str, Array]]]:
    """The first output of floats, else the first, with nothing switched, and with each layer switched alone.

    Of the batch the first `samples` count; the others fill it up.
    """

    def first(feeds: Mapping[str, Array]) -> Array:
        answers = [*axes.by_sample(session.run(feeds), samples).values()]
        return next(filter(is_floating, answers), answers[0])

    return first(plain), ((entry.node, first({**plain, **entry.quantised()})) for entry in switched)


def _switch(
    model: ir.Model, layer: GraphLayer, decision: LayerDecision, rounded: RoundedWeight | None, stored: npt.DTypeLike
) -> Switched:
    """Give a layer its switch, and make inputs of its weight and its bias."""
    node = next(node for node in model.graph if node.name == layer.node)
    rows = weight_rows(model, layer).astype(np.float32)
    rounded = rounded or rounded_to_nearest(rows, decision, stored)
    by_rows = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    weight = rows if by_rows else np.ascontiguousarray(rows.T)
    plain: dict[str, Array] = {}

    def given(holder: ir.Node, index: int, what: str, array: Array) -> str:
        name = _input(model, layer.node, what, array)
        holder.replace_input_with(index, model.graph.inputs[-1])
        plain[name] = array
        return name

    weight_name, bias_name = given(node, 1, "weight", weight), None
    place = bias_place(node)
    if place is not None and rounded.bias is not None:
        value = place[0].inputs[place[1]]
        assert value is not None, "bias_place has seen it"
        bias_name = given(*place, "bias", array_of(value).astype(np.float32))
    assert decision.activation is not None, "only INT8 layers come here"
    on = _input(model, layer.node, "on", np.array(False))
    _switch_pair(node, decision.activation.scale, model.graph.inputs[-1])
    plain[on] = np.array(False)

    def quantised() -> Mapping[str, Array]:
        codes = rounded.codes if by_rows else rounded.codes.T
        made = dequantize(np.ascontiguousarray(codes), rounded.scale, axis=0 if by_rows else 1)
        found: dict[str, Array] = {on: np.array(True), weight_name: made}
        if bias_name is not None and rounded.bias is not None:
            found[bias_name] = (plain[bias_name] + rounded.bias).astype(np.float32)
        return found

    return Switched(node=layer.node, plain=plain, quantised=quantised)


def _input(model: ir.Model, node: str, what: str, like: Array) -> str:
    """A new graph input of an array's type and shape, the last; its name."""
    name = f"{node}_{what}_switched"
    dtype = ir.DataType.from_numpy(like.dtype)
    model.graph.inputs.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(like.shape)))
    return name


def _switch_pair(node: ir.Node, scale: float, on: ir.Value) -> None:
    value = node.inputs[0]
    assert value is not None, "a layer has an input"
    assert isinstance(node.graph, ir.Graph), "a layer stands in a graph"
    prefix = f"{node_name(node)}_switched"
    step = add_initializer(node.graph, f"{prefix}_scale", np.array(scale, np.float32))
    zero = add_initializer(node.graph, f"{prefix}_zero_point", np.array(0, np.int8))
    q = ir.node("QuantizeLinear", [value, step, zero], name=f"{prefix}_q")
    codes = insert_before(node, q, like=value, dtype=ir.DataType.INT8)
    dq = ir.node("DequantizeLinear", [codes, step, zero], name=f"{prefix}_dq")
    rounded = insert_before(node, dq, like=value, dtype=ir.DataType.FLOAT)
    where = ir.node("Where", [on, rounded, value], name=f"{prefix}_where")
    node.replace_input_with(0, insert_before(node, where, like=value, dtype=ir.DataType.FLOAT))
