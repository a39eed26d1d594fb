"""Take the projections to query, key and value in one product: the form in which attention has fewest kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.graph.shapes import PROBES, dimensions
from gpusq_deploy.graph.values import (
    NAME_SCOPES,
    add_initializer,
    array_of,
    insert_before,
    is_constant,
    module_of,
    node_name,
)

_PARTS = 3
_THROUGH = frozenset({"Mul", "Div", "Transpose", "Reshape", "Cast", "QuantizeLinear", "DequantizeLinear"})


class Projection(NamedTuple):
    """One Linear and what brings its result into heads: [..., N, h·d] to [B, h, N, d]."""

    product: ir.Node
    bias: ir.Value | None
    heads: ir.Node
    turned: ir.Node


@dataclass(frozen=True, kw_only=True, slots=True)
class QkvGroup:
    """Three projections of one input: nodes and layers in the order query, key, value, and the packed layer's name."""

    nodes: tuple[str, str, str]
    modules: tuple[str, str, str]
    packed: str

    @property
    def node(self) -> str:
        """The packed product's name."""
        return "_and_".join(self.nodes)


@dataclass(frozen=True, slots=True)
class MergeQkv:
    """`Transpose(Reshape(x·Wq + bq))`, and the same for k and v, become three parts of one product.

    1. Three MatMuls read one value x [B, N, K], each with a constant weight [K, h·d] of one size that nothing else
       reads, and each followed by an Add of a constant [h·d] or by none.
    2. Each goes through Reshape to [B, N, h, d] and Transpose to [B, h, N, d], the same sizes for all, and nothing else
       reads what lies between.
    3. They become x·[Wq Wk Wv] + [bq bk bv], Reshape to [B, N, 3, h, d], Transpose to [3, B, h, N, d], and three
       Gather. Every number is the sum of the same products; a missing bias is 0.
    4. Declined: triples that aren't in `chosen`, by the names of their nodes (None: all are); two or four such
       projections of one input; sizes that aren't known or not the same; a result that isn't a query, a key and a
       value.

    Measured by TensorRT-RTX 1.7's layer list in FP16, batch 8: transformers' ViT-B/16 has 125 kernels before, 101
    after; transformers' Swin-T 133 before, 109 after.
    """

    chosen: tuple[QkvGroup, ...] | None = None
    name: ClassVar[str] = "merge-qkv"

    def run(self, model: ir.Model) -> int:
        """See the class."""
        chosen = find_projections(model) if self.chosen is None else self.chosen
        wanted = {triple.nodes: triple for triple in chosen}
        changes = 0
        for parts in _found(model):
            triple = wanted.get(_nodes(parts))
            if triple is not None:
                _pack(model.graph, parts, triple)
                changes += 1
        if changes:
            common.RemoveUnusedNodesPass()(model)
        return changes


def find_projections(model: ir.Model) -> tuple[QkvGroup, ...]:
    """Every triple that can be packed, in graph order."""
    return tuple(_triple(parts) for parts in _found(model))


def _triple(parts: list[Projection]) -> QkvGroup:
    first, second, third = (module_of(part.product) or node_name(part.product) for part in parts)
    parent, dot, leaf = first.rpartition(".")
    leaves = [leaf, *(name.removeprefix(parent + dot) for name in (second, third))]
    packed = f"{parent}{dot}{'+'.join(leaves)}"
    return QkvGroup(nodes=_nodes(parts), modules=(first, second, third), packed=packed)


def _nodes(parts: list[Projection]) -> tuple[str, str, str]:
    first, second, third = (node_name(part.product) for part in parts)
    return first, second, third


def _found(model: ir.Model) -> list[list[Projection]]:
    by_input: dict[ir.Value, list[Projection]] = {}
    for node in model.graph:
        found = _projection(node) if node.op_type == "MatMul" else None
        if found is not None and node.inputs[0] is not None:
            by_input.setdefault(node.inputs[0], []).append(found)
    triples = [_in_order(parts) for parts in by_input.values() if len(parts) == _PARTS]
    return [parts for parts in triples if parts is not None]


def _projection(node: ir.Node) -> Projection | None:
    weight = node.inputs[1]
    if weight is None or not _is_own_matrix(weight):
        return None
    after = _reader(node.outputs[0])
    bias: ir.Value | None = None
    if after is not None and after.op_type == "Add":
        bias = next((value for value in after.inputs if value is not None and is_constant(value)), None)
        if bias is None or array_of(bias).shape != (array_of(weight).shape[1],):
            return None
        after = _reader(after.outputs[0])
    if after is None or after.op_type != "Reshape" or not is_constant(after.inputs[1]):
        return None
    turned = _reader(after.outputs[0])
    if turned is None or not _turns_heads(turned):
        return None
    return Projection(product=node, bias=bias, heads=after, turned=turned)


def _is_own_matrix(weight: ir.Value) -> bool:
    return is_constant(weight) and array_of(weight).ndim == 2 and len(weight.uses()) == 1


def _turns_heads(node: ir.Node) -> bool:
    """Whether [batch, tokens, heads, size] becomes [batch, heads, tokens, size]."""
    return node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == [0, 2, 1, 3]


def _reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads a value."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _in_order(parts: list[Projection]) -> list[Projection] | None:
    """Query, key, value, by what reads them; None where their sizes differ or one of them is something else."""
    sizes = {_sizes(part) for part in parts}
    if len(sizes) != 1 or None in sizes:
        return None
    roles = {_role(part.turned.outputs[0]): part for part in parts}
    found = [roles.get(role) for role in ("query", "key", "value")]
    return [part for part in found if part is not None] if None not in found else None


def _sizes(part: Projection) -> tuple[tuple[int, ...], ...] | None:
    """The shape in heads at two batch sizes, where it is the Linear's with its last axis split."""
    found: list[tuple[int, ...]] = []
    for batch in PROBES:
        flat, heads = dimensions(part.product.outputs[0], batch), dimensions(part.heads.outputs[0], batch)
        if flat is None or heads is None or len(flat) != 3 or len(heads) != 4:
            return None
        if heads[:2] != flat[:2] or heads[2] * heads[3] != flat[2]:
            return None
        found.append(heads)
    return tuple(found)


def _role(value: ir.Value) -> str:
    """`query`, `key` or `value`, by the product that reads it through scales, transposes and Q/DQ; or nothing."""
    while True:
        uses = tuple(value.uses())
        if len(uses) != 1:
            return ""
        reader, index = uses[0]
        if reader.op_type == "MatMul":
            return _operand(reader, index)
        if reader.op_type not in _THROUGH or not reader.outputs:
            return ""
        value = reader.outputs[0]


def _operand(product: ir.Node, index: int) -> str:
    if index == 0:
        return "query"
    first = product.inputs[0]
    before = None if first is None else first.producer()
    while before is not None and before.op_type in {"QuantizeLinear", "DequantizeLinear", "Cast"} and before.inputs[0]:
        before = before.inputs[0].producer()
    return "value" if before is not None and before.op_type == "Softmax" else "key"


def _pack(graph: ir.Graph, parts: list[Projection], triple: QkvGroup) -> None:
    anchor, name = min((part.product for part in parts), key=list(graph).index), triple.node
    scope = {**anchor.metadata_props, NAME_SCOPES: repr(["", triple.packed, "packed"])}
    value = _packed_product(graph, anchor, parts, name, scope)
    heads = parts[0].heads.outputs[0].shape
    assert heads is not None, "the pattern has looked at it"
    rows, tokens, count, size = heads
    target = add_initializer(graph, f"{name}_parts", np.array([-1, tokens, _PARTS, count, size], np.int64))
    split = ir.node("Reshape", [value, target], name=f"{name}_split", metadata_props=scope)
    value = _insert(anchor, split, [rows, tokens, _PARTS, count, size])
    turn = ir.node("Transpose", [value], {"perm": [2, 0, 3, 1, 4]}, name=f"{name}_heads", metadata_props=scope)
    value = _insert(anchor, turn, [_PARTS, rows, count, tokens, size])
    for index, part in enumerate(parts):
        which = add_initializer(graph, f"{name}_index_{index}", np.array(index, np.int64))
        take = ir.node("Gather", [value, which], {"axis": 0}, name=f"{name}_part_{index}", metadata_props=scope)
        taken = _insert(anchor, take, [rows, count, tokens, size])
        for reader, place in tuple(part.turned.outputs[0].uses()):
            reader.replace_input_with(place, taken)


def _packed_product(
    graph: ir.Graph, anchor: ir.Node, parts: list[Projection], name: str, scope: Mapping[str, str]
) -> ir.Value:
    """x·[Wq Wk Wv] + [bq bk bv], in front of the first of the three."""
    weights = [_array(part.product.inputs[1]) for part in parts]
    width, shape = weights[0].shape[1], anchor.outputs[0].shape
    assert shape is not None, "the pattern has looked at it"
    sizes = [*shape[:-1], _PARTS * width]
    weight = add_initializer(graph, f"{name}_weight", np.concatenate(weights, axis=1))
    product = ir.node("MatMul", [anchor.inputs[0], weight], name=name, metadata_props=dict(scope))
    value = _insert(anchor, product, sizes)
    if all(part.bias is None for part in parts):
        return value
    zeros = np.zeros(width, weights[0].dtype)
    biases = [zeros if part.bias is None else array_of(part.bias) for part in parts]
    bias = add_initializer(graph, f"{name}_bias", np.concatenate(biases))
    add = ir.node("Add", [value, bias], name=f"{name}_add", metadata_props=dict(scope))
    return _insert(anchor, add, sizes)


def _array(value: ir.Value | None) -> npt.NDArray[Any]:
    assert value is not None, "the pattern matched a MatMul with a weight"
    return array_of(value)


def _insert(anchor: ir.Node, node: ir.Node, shape: Sequence[int | ir.SymbolicDim]) -> ir.Value:
    like = anchor.outputs[0]
    assert like.dtype is not None, "an exported graph has types"
    value = insert_before(anchor, node, like=like, dtype=like.dtype)
    value.shape = ir.Shape(shape)
    return value
