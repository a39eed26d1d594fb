"""What each INT8 layer alone does to the model's output, measured by running it.

One float graph, in which every layer in question can be switched: its weight and bias are inputs, and a switch puts a
Q/DQ pair in front of it. It runs once with nothing switched, and once for each layer with that one quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.artifacts.plan import LayerDecision, Plan
from gpusq_deploy.calibration.sources import Batches, DataSource, filled
from gpusq_deploy.engines.ort import open_onnx
from gpusq_deploy.engines.session import Session
from gpusq_deploy.graph.files import scratch_model
from gpusq_deploy.graph.layers import GraphLayer, weight_rows, weighted_layers
from gpusq_deploy.graph.smoothable import bias_place
from gpusq_deploy.graph.values import add_initializer, array_of, insert_before, node_name, static_batch
from gpusq_deploy.numerics.affine import dequantize, quantize, weight_scales
from gpusq_deploy.passes.quantize import STORED_TYPE, RoundedWeight

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
    plan: Plan,
    rounded: Mapping[str, RoundedWeight],
    source: DataSource,
    progress: Callable[[int, int], None],
    *,
    narrow: Callable[[Mapping[str, float]], Collection[str]] | None = None,
) -> dict[str, float]:
    """Σ(y' - y)² / Σy² of the first output, by node of each planned INT8 Linear layer that was quantised alone.

    Of a few samples one may decide a layer's sum, and a run costs as much for a quiet layer as for a noisy one. So the
    first four samples are for all layers, and the others are for those that `narrow` names.

    Args:
        model: The float graph that the plan is for; left as it is.
        plan: Decisions; inputs' scales are taken from there.
        rounded: Weights that were rounded with regard to the data, by node; the others are rounded to nearest.
        source: Samples to run; the graph's static batch, or 4, at a time.
        progress: Hears how many of the runs are done.
        narrow: From what the first samples gave, the nodes of the layers to go on with; None goes on with all.
    """
    decided = {decision.node: decision for decision in plan.layers if decision.precision == "int8"}
    chosen = [
        layer
        for layer in weighted_layers(model)
        if layer.node in decided and layer.kind == "linear" and not layer.only_seen
    ]
    copy = model.clone()
    stored = STORED_TYPE[plan.remainder]
    switched = [_switch(copy, layer, decided[layer.node], rounded.get(layer.node), stored) for layer in chosen]
    common.RemoveUnusedNodesPass()(copy)  # the weights: they are inputs now
    fixed = static_batch(model.graph)
    sums = {entry.node: _Sums() for entry in switched}
    with scratch_model(copy) as path:
        session = open_onnx(path)
        try:
            batches, done = [filled(batch, fixed) for batch in Batches(source=source, size=fixed or _BATCH)], 0
            first = min(-(-_BATCH // len(batches[0])), len(batches)) if batches else 0
            watched = switched
            for index, batch in enumerate(batches):
                total = done + (len(batches) - index) * len(watched)
                reference, answers = _answers(session, batch, switched, watched)
                signal = float(np.square(reference, dtype=np.float64).sum())
                for node, answer in answers:
                    sums[node].add(float(np.square(answer - reference, dtype=np.float64).sum()), signal)
                    done += 1
                    progress(done, total)
                if index == first - 1 and narrow is not None:
                    going_on = narrow({node: entry.ratio() for node, entry in sums.items()})
                    watched = [entry for entry in switched if entry.node in going_on]
        finally:
            session.close()
    progress(done, done)
    return {node: entry.ratio() for node, entry in sums.items()}


@dataclass(kw_only=True, slots=True)
class _Sums:
    """Of the samples that a layer was measured on."""

    noise: float = 0.0
    signal: float = 0.0

    def add(self, noise: float, signal: float) -> None:
        self.noise += noise
        self.signal += signal

    def ratio(self) -> float:
        return self.noise / self.signal if self.signal else 0.0


def _answers(
    session: Session, batch: Array, switched: Sequence[Switched], watched: Sequence[Switched]
) -> tuple[Array, Iterator[tuple[str, Array]]]:
    """The first output with nothing switched, and with each of the watched layers switched alone."""
    plain: dict[str, Array] = {session.inputs[0].name: batch}
    for entry in switched:
        plain |= entry.plain

    def first(feeds: Mapping[str, Array]) -> Array:
        return next(iter(session.run(feeds).values()))

    return first(plain), ((entry.node, first({**plain, **entry.quantised()})) for entry in watched)


def _switch(
    model: ir.Model, layer: GraphLayer, decision: LayerDecision, rounded: RoundedWeight | None, stored: npt.DTypeLike
) -> Switched:
    """Give a layer its switch, and make inputs of its weight and its bias."""
    node = next(node for node in model.graph if node.name == layer.node)
    rows = weight_rows(model, layer).astype(np.float32)
    if rounded is None:
        one_scale = decision.weight is not None and decision.weight.one_scale
        scale = weight_scales(rows, 0, dtype=stored, one_scale=one_scale)
        rounded = RoundedWeight(codes=quantize(rows, scale, axis=0), scale=scale, bias=None)
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
