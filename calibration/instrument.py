"""Give a graph the outputs that calibration watches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import onnx_ir as ir

from gpusq_deploy.graph import value_name

AMAX_SUFFIX = "__amax"
VALUES_SUFFIX = "__values"


def instrumented(model: ir.Model, tensors: Sequence[str], *, whole: Collection[str]) -> ir.Model:
    """A copy with one more output for each tensor.

    Args:
        model: Left as it is.
        tensors: Names of values of the graph.
        whole: Those that become outputs themselves, as `NAME__values`. Of the others the graph gives
            `NAME__amax`, the largest magnitude, or NaN where a value isn't finite.
    """
    copy = model.clone()
    values = {value_name(value): value for value in _values(copy.graph)}
    for name in tensors:
        add = _add_whole if name in whole else _add_amax
        add(copy.graph, values[name], name)
    return copy


def _add_whole(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Through an Identity: a graph's input can't be its output too."""
    same = ir.node("Identity", [value], name=f"{name}{VALUES_SUFFIX}")
    output = same.outputs[0]
    output.name, output.type, output.shape = f"{name}{VALUES_SUFFIX}", value.type, value.shape
    graph.append(same)
    graph.outputs.append(output)


def _add_amax(graph: ir.Graph, value: ir.Value, name: str) -> None:
    absolute = ir.node("Abs", [value], name=f"{name}__abs")
    largest = ir.node("ReduceMax", [absolute.outputs[0]], {"keepdims": 0}, name=f"{name}__max")
    nothing = ir.node("Sub", [value, value], name=f"{name}__nothing")
    finite = ir.node("ReduceSum", [nothing.outputs[0]], {"keepdims": 0}, name=f"{name}__finite")
    total = ir.node("Add", [largest.outputs[0], finite.outputs[0]], name=f"{name}{AMAX_SUFFIX}")
    nodes = [absolute, largest, nothing, finite, total]
    for node in nodes[:-1]:
        node.outputs[0].name = f"{node.name}_out"
    output = total.outputs[0]
    output.name, output.type, output.shape = f"{name}{AMAX_SUFFIX}", ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    graph.extend(nodes)
    graph.outputs.append(output)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Constants too: a decoder's first queries may be one."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
