"""Run MLPs on a list of tokens rather than on an image of them: the compiler fuses bias and GELU only there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from gpusq_deploy.graph.shapes import PROBES, dimensions
from gpusq_deploy.graph.values import (
    add_initializer,
    array_of,
    insert_before,
    is_constant,
    node_name,
    norm_last_axis,
    norms_tokens,
)

_EACH_ALONE = frozenset({"Gelu", "Relu", "Sigmoid", "Tanh", "Erf", "HardSwish"})
_LIST = 3


@dataclass(frozen=True, slots=True)
class FlattenTokens:
    """`MLP(x)` on x [B, H, W, C] becomes Reshape to [B, H·W, C], the same MLP, and Reshape to [B, H, W, C'].

    1. It starts at a MatMul of a value with four axes or more by a constant [C, C'], and goes on through what treats
       each token alone: an Add or a Mul of a constant with at most one axis, an activation function, and further such
       MatMul. Each value in between has one reader.
    2. A LayerNormalization over the last axis in front of it, which nothing else reads, belongs to it.
    3. It ends where the next node is something else. Two MatMul at least: a single one is fused as it is.
    4. What the graph answers stays an image: the MLP ends before it.
    5. Declined: sizes that aren't known.

    Every number is the sum of the same products. Measured by TensorRT-RTX 1.7's layer list in FP16, batch 8:
    torchvision's Swin-T has 122 kernels before, 110 after.
    """

    name: ClassVar[str] = "flatten-tokens"

    def run(self, model: ir.Model) -> int:
        """See the class."""
        changes = 0
        for node in tuple(model.graph):
            chain = _chain_from(node)
            if sum(step.op_type == "MatMul" for step in chain) > 1:
                _flatten(model.graph, chain)
                changes += 1
        return changes


def _chain_from(node: ir.Node) -> list[ir.Node]:
    """The nodes from the first MatMul of an MLP to its last node; none where there is no such MLP."""
    source = node.inputs[0] if node.op_type == "MatMul" else None
    if source is None or not _treats_each_token_alone(node) or _sizes(source) is None:
        return []
    chain = [node]
    while True:
        value = chain[-1].outputs[0]
        uses = tuple(value.uses())
        if len(uses) != 1 or value.is_graph_output() or not _treats_each_token_alone(uses[0].node, uses[0].idx):
            break
        step = uses[0].node
        if step.outputs[0].is_graph_output() or not step.outputs[0].uses():
            break
        chain.append(step)
    if any(_sizes(step.outputs[0]) is None for step in chain):
        return []
    return [*_norm_before(source), *chain]


def _norm_before(source: ir.Value) -> list[ir.Node]:
    """The LayerNormalization of each token that makes `source` for one reader."""
    node = source.producer()
    if node is None or node.op_type != "LayerNormalization" or len(source.uses()) != 1 or source.is_graph_output():
        return []
    known = node.inputs[0] is not None and _sizes(node.inputs[0]) is not None
    return [node] if norms_tokens(node) and known and len(node.outputs) == 1 else []


def _treats_each_token_alone(node: ir.Node, index: int = 0) -> bool:
    if node.op_type in _EACH_ALONE:
        return True
    if node.op_type == "MatMul":
        return index == 0 and is_constant(node.inputs[1]) and _rank(node.inputs[1]) == 2
    if node.op_type not in {"Add", "Mul"}:
        return False
    other = node.inputs[1 - index]
    return is_constant(other) and _rank(other) <= 1


def _rank(value: ir.Value | None) -> int:
    return -1 if value is None else array_of(value).ndim


def _sizes(value: ir.Value) -> tuple[int, ...] | None:
    """The axes behind the first one, where there are three or more and none follows the batch."""
    first, second = (dimensions(value, batch) for batch in PROBES)
    if first is None or second is None or len(first) <= _LIST or first[1:] != second[1:]:
        return None
    return first[1:]


def _flatten(graph: ir.Graph, chain: list[ir.Node]) -> None:
    first, last = chain[0], chain[-1]
    source, result = first.inputs[0], last.outputs[0]
    inside = None if source is None else _sizes(source)
    assert source is not None, "the pattern has looked at it"
    assert inside is not None, "the pattern has looked at it"
    tokens = int(np.prod(inside[:-1]))
    flat = _reshape(graph, first, source, "tokens", (tokens, inside[-1]))
    first.replace_input_with(0, flat)
    if first.op_type == "LayerNormalization":
        norm_last_axis(first)
    readers, shape = tuple(result.uses()), result.shape
    for step in chain:
        value = step.outputs[0]
        assert value.shape is not None, "the pattern has looked at it"
        value.shape = ir.Shape([value.shape[0], tokens, value.shape[-1]])
    assert shape is not None, "the pattern has looked at it"
    behind = next(node for node in graph if any(node is reader for reader, _ in readers))
    back = _reshape(graph, behind, result, "image", (*inside[:-1], int(str(shape[-1]))))
    for reader, index in readers:
        reader.replace_input_with(index, back)


def _reshape(graph: ir.Graph, anchor: ir.Node, value: ir.Value, what: str, sizes: tuple[int, ...]) -> ir.Value:
    producer = value.producer()
    name = f"{value.name if producer is None else node_name(producer)}_{node_name(anchor)}_{what}"
    target = add_initializer(graph, f"{name}_target", np.array([-1, *sizes], np.int64))
    node = ir.node("Reshape", [value, target], name=name, metadata_props=dict(anchor.metadata_props))
    assert value.dtype is not None, "an exported graph has types"
    assert value.shape is not None, "the pattern has looked at it"
    output = insert_before(anchor, node, like=value, dtype=value.dtype)
    output.shape = ir.Shape([value.shape[0], *sizes])
    return output
