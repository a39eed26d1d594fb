"""Give a graph the outputs that calibration watches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import onnx_ir as ir

from gpusq_deploy.graph import add_initializer, value_name

AMAX_SUFFIX = "__amax"
VALUES_SUFFIX = "__values"
LARGEST_SUFFIX = "__largest"
# Their first output holds values of their first input, no others.
MOVES = frozenset(
    {"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


def instrumented(
    model: ir.Model, tensors: Sequence[str], *, whole: Collection[str], magnitudes: bool = False
) -> ir.Model:
    """A copy with one more output for each tensor.

    Args:
        model: Left as it is.
        tensors: Names of values of the graph.
        whole: Those that become outputs themselves, as `NAME__values`. Of the others the graph gives
            `NAME__amax`, the largest magnitude, or NaN where a value isn't finite.
        magnitudes: Also give `NAME__largest`, the largest finite magnitude, of every float32 tensor that a node
            computes. Infinities are left out: masks hold them on purpose, and FP16 holds them too. Those of tensors
            that are only moved are their origins', see `moved_from`.
    """
    copy = model.clone()
    values = {value_name(value): value for value in _values(copy.graph)}
    computed = [value for node in copy.graph for value in node.outputs if _is_computed(value)] if magnitudes else []
    for name in dict.fromkeys(tensors):
        add = _add_whole if name in whole else _add_amax
        add(copy.graph, values[name], name)
    if computed:
        zero = add_initializer(copy.graph, "magnitudes__zero", np.zeros((), np.float32))
        for value in computed:
            _add_largest(copy.graph, value, zero)
    return copy


def moved_from(model: ir.Model) -> dict[str, str]:
    """By float32 tensor that a node only moves: the tensor whose values it holds; in graph order."""
    return {
        value_name(value): value_name(origin)
        for node in model.graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and (origin := _origin(value)) is not None
    }


def _is_computed(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and _origin(value) is None


def _origin(value: ir.Value) -> ir.Value | None:
    node = value.producer()
    origin = node.inputs[0] if node is not None and node.op_type in MOVES else None
    return origin if origin is not None and origin.producer() is not None else None


def _add_largest(graph: ir.Graph, value: ir.Value, zero: ir.Value) -> None:
    name = value_name(value)
    infinite = ir.node("IsInf", [value], name=f"{name}__infinite")
    finite = ir.node("Where", [infinite.outputs[0], zero, value], name=f"{name}__finite_part")
    size = ir.node("Abs", [finite.outputs[0]], name=f"{name}__size")
    largest = ir.node("ReduceMax", [size.outputs[0]], {"keepdims": 0}, name=f"{name}{LARGEST_SUFFIX}")
    for node in (infinite, finite, size):
        node.outputs[0].name = f"{node.name}_out"
    _answer(graph, largest.outputs[0], f"{name}{LARGEST_SUFFIX}")
    graph.extend([infinite, finite, size, largest])


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
    graph.extend(nodes)
    _answer(graph, total.outputs[0], f"{name}{AMAX_SUFFIX}")


def _answer(graph: ir.Graph, output: ir.Value, name: str) -> None:
    """A scalar that the graph answers too."""
    output.name, output.type, output.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    graph.outputs.append(output)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Constants too: a decoder's first queries may be one."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
