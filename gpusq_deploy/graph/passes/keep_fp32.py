"""Leave in float32 what FP16 can't hold: islands of float32 nodes, with casts at their shores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from gpusq_deploy.artifacts import QuantPlan
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.provenance import KEPT_FLOAT32, is_kept
from gpusq_deploy.graph.values import add_initializer, array_of, insert_before, node_name, value_name
from gpusq_deploy.numerics import overflows_fp16

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


def keep_fp32(plan: QuantPlan) -> KeepFp32:
    """The pass for what a plan keeps in float32."""
    activations = tuple(wide.tensor for wide in plan.wide if not wide.constant)
    return KeepFp32(activations, constants=plan.float_type == "fp16")


@dataclass(frozen=True, slots=True)
class KeepFp32:
    """Mark what reads or makes one of `tensors` as float32, and put casts where floats enter or leave it.

    1. A node that reads or makes a wide tensor is kept in float32. With `constants`, so is one that reads a constant
       which FP16 can't hold. What a QuantizeLinear/DequantizeLinear pair makes of a wide tensor is as wide.
    2. A kept node that reads a DequantizeLinear (of its weight, say) keeps that too, and the QuantizeLinear before it:
       a cast between would hide the INT8 product from TensorRT, and the pair shares a scale.
    3. Floats that enter an island pass a Cast that is kept, and floats that leave it one that isn't: here both are
       casts from float32 to float32, which do nothing; CastToFloatType makes them what they are for.
    4. A constant that both sides read becomes two.

    The graph computes what it computed before. A tensor that the graph doesn't have is an error; graph inputs and
    outputs are float32 in any case.
    """

    tensors: tuple[str, ...]
    constants: bool = False
    name: ClassVar[str] = "keep-fp32"

    def run(self, model: ir.Model) -> int:
        """See the class.

        Raises:
            GpusqError: The graph has no tensor of that name.
        """
        graph = model.graph
        kept = _kept(graph, self._values(graph))
        if not kept or all(is_kept(node) for node in kept):
            return 0
        for node in kept:
            node.metadata_props[KEPT_FLOAT32] = "1"
        # In the graph's order: sets have none.
        inside = [node for node in graph if node in kept]
        changes = len(inside)
        changes += sum(_enter(graph, value, kept) for value in _distinct(node.inputs for node in inside))
        changes += sum(_leave(value, kept) for value in _distinct(node.outputs for node in inside))
        return changes

    def _values(self, graph: ir.Graph) -> set[ir.Value]:
        known = known_tensors(graph)
        missing = [name for name in self.tensors if name not in known]
        if missing:
            raise GpusqError(
                "the plan keeps a tensor in float32 that the graph doesn't have",
                place=f"tensor {missing[0]}",
                hint="build the model again with gpusq-build",
            )
        constants = graph.initializers.values() if self.constants else ()
        return {known[name] for name in self.tensors} | {value for value in constants if _overflows(value)}


def island_nodes(graph: ir.Graph, tensors: Iterable[str]) -> frozenset[str]:
    """Names of the nodes that read or make one of the tensors."""
    wide = frozenset(tensors)
    return frozenset(
        node_name(node)
        for node in graph
        if any(value is not None and value_name(value) in wide for value in (*node.inputs, *node.outputs))
    )


def _overflows(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and bool(value.uses()) and overflows_fp16(array_of(value))


def known_tensors(graph: ir.Graph) -> dict[str, ir.Value]:
    """Inputs, constants and what nodes make, by name."""
    made = (value for node in graph for value in node.outputs)
    return {value_name(value): value for value in (*graph.inputs, *graph.initializers.values(), *made)}


def _kept(graph: ir.Graph, wide: set[ir.Value]) -> set[ir.Node]:
    wide = set(wide)
    kept: set[ir.Node] = set()
    for node in graph:
        if any(value in wide for value in (*node.inputs, *node.outputs)):
            kept.add(node)
            if node.op_type in _QDQ:
                wide.update(node.outputs)
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        producers = [value.producer() for node in kept for value in node.inputs if value is not None]
        kept.update(maker for maker in producers if maker is not None and maker.op_type == op_type)
    return kept


def _distinct(groups: Iterable[Iterable[ir.Value | None]]) -> list[ir.Value]:
    """The float values among them, each once, in order."""
    values = (value for group in groups for value in group)
    return list(dict.fromkeys(value for value in values if value is not None and value.dtype == ir.DataType.FLOAT))


def _enter(graph: ir.Graph, value: ir.Value, kept: set[ir.Node]) -> int:
    """Let kept readers of a value that isn't float32 in the end read a float32 one."""
    maker, uses = value.producer(), tuple(value.uses())
    if maker in kept or value.is_graph_input():
        return 0
    inside = [(node, index) for node, index in uses if node in kept]
    if value.is_initializer():
        if len(inside) == len(uses):
            return 0
        own = add_initializer(graph, f"{value_name(value)}_float32", array_of(value))
    else:
        readers = {node for node, _ in inside}
        first = next(node for node in graph if node in readers)
        cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value_name(value)}_float32")
        cast.metadata_props[KEPT_FLOAT32] = "1"
        own = insert_before(first, cast, like=value, dtype=ir.DataType.FLOAT)
    for node, index in inside:
        node.replace_input_with(index, own)
    return 1


def _leave(value: ir.Value, kept: set[ir.Node]) -> int:
    """Let the other readers of a kept node's answer read it behind a cast."""
    outside = [(node, index) for node, index in value.uses() if node not in kept]
    if not outside:
        return 0
    readers = {node for node, _ in outside}
    maker = value.producer()
    graph = None if maker is None else maker.graph
    if not isinstance(graph, ir.Graph):
        raise GpusqError("the node stands in no graph", place=value_name(value), hint="export the model again")
    first = next(node for node in graph if node in readers)
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value_name(value)}_narrow")
    own = insert_before(first, cast, like=value, dtype=ir.DataType.FLOAT)
    for node, index in outside:
        node.replace_input_with(index, own)
    return 1
