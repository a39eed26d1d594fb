"""The largest magnitude of every tensor of a graph: what tells whether FP16 can hold it.

Few samples suffice for that where the limit keeps a margin, so the pass over all calibration data need not watch the
tensors that no layer reads. Infinities are left out: masks hold them on purpose, and FP16 holds them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from gpusq_deploy.calibration.data import Batches, DataSource, Selection, evenly_filled
from gpusq_deploy.calibration.observe import Runner
from gpusq_deploy.graph import add_initializer, scratch_model, static_batch, value_name

SAMPLES = 8
# Their first output holds values of their first input, no others.
_MOVES = frozenset(
    {"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
_LARGEST = "__largest"


def few(source: DataSource) -> DataSource:
    """At most `SAMPLES` samples, spread over the whole."""
    count = min(len(source), SAMPLES)
    return Selection(source=source, indices=[index * len(source) // count for index in range(count)])


def largest_magnitudes(
    model: ir.Model, source: DataSource, *, open_model: Callable[[Path], Runner]
) -> Mapping[str, float]:
    """Run the graph on every sample.

    Args:
        model: Float32 graph with one image input; left as it is.
        source: Samples; each is seen once, alone.
        open_model: Opens an ONNX file for running.

    Returns:
        The largest finite magnitude by tensor, of every float32 tensor that a node makes.

    Raises:
        GpusqError: No sample can be read.
    """
    watched, moved = _instrumented(model)
    found: dict[str, float] = {}
    batch, feed = static_batch(model.graph), value_name(model.graph.inputs[0])
    with scratch_model(watched) as path:
        runner = open_model(path)
        try:
            for sample in Batches(source=source, size=1):
                for filled, _ in evenly_filled(sample, batch):
                    for name, value in runner.run({feed: filled}).items():
                        if name.endswith(_LARGEST):
                            tensor = name.removesuffix(_LARGEST)
                            found[tensor] = max(found.get(tensor, 0.0), float(np.nan_to_num(value, nan=0.0)))
        finally:
            runner.close()
    for tensor, origin in moved.items():  # in the graph's order: an origin is known before what is moved from it
        if origin in found:
            found[tensor] = found[origin]
    return found


def _instrumented(model: ir.Model) -> tuple[ir.Model, dict[str, str]]:
    """A copy that answers each tensor's largest magnitude, and for those that were only moved where they come from."""
    copy = model.clone()
    graph = copy.graph
    zero = add_initializer(graph, "magnitudes__zero", np.zeros((), np.float32))
    moved: dict[str, str] = {}
    for node in tuple(graph):
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            origin = node.inputs[0] if node.op_type in _MOVES else None
            if origin is not None and origin.producer() is not None:
                moved[value_name(value)] = value_name(origin)
            else:
                _watch(graph, value, zero)
    return copy, moved


def _watch(graph: ir.Graph, value: ir.Value, zero: ir.Value) -> None:
    name = value_name(value)
    infinite = ir.node("IsInf", [value], name=f"{name}__infinite")
    finite = ir.node("Where", [infinite.outputs[0], zero, value], name=f"{name}__finite")
    size = ir.node("Abs", [finite.outputs[0]], name=f"{name}__size")
    largest = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0}, name=f"{name}{_LARGEST}")
    for node in (infinite, finite, size):
        node.outputs[0].name = f"{node.name}_out"
    output = largest.outputs[0]
    output.name, output.type, output.shape = f"{name}{_LARGEST}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    graph.extend([infinite, finite, size, largest])
    graph.outputs.append(output)
