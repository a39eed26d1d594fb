"""Bring the scale of attention to queries and keys, in front of the keys' transpose: the form that fuses best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.graph.shapes import PROBES, dimensions
from gpusq_deploy.graph.values import add_initializer, array_of, insert_before, is_constant, is_scalar, node_name

_MATRIX = 2


class _Factor(NamedTuple):
    """A value, the node that scales it by a scalar if there is one, and that factor; 1 where there is none."""

    value: ir.Value
    node: ir.Node | None
    factor: float


class _Key(NamedTuple):
    """The value that becomes the key [..., tokens, d]: by the permutation `order`, or by a Reshape to `sizes`."""

    value: ir.Value
    order: list[int] | None = None
    sizes: tuple[int, ...] | None = None


class _Rewrite(NamedTuple):
    """The product's inputs to be; `query` None: it stays. `scores` is the node that the product takes the place of."""

    query: ir.Value | None
    key: _Key
    scale: ir.Value | float
    scores: ir.Node | None


@dataclass(frozen=True, slots=True)
class AttentionScale:
    """The first product of an attention becomes `MatMul(q·s, transpose(k·s))`.

    1. The product: a MatMul with no constant input, whose second input is the key [..., tokens, d] with its last two
       axes exchanged: by one Transpose, or, as torch exports scaled_dot_product_attention, by Reshape to three axes,
       Transpose, and Reshape back to four. The first Reshape may be missing, as in torchvision's token-first form; and
       one Transpose may also bring the heads forward, [B, n, h, d] to [B, h, d, n], as in the written-out attention of
       transformers: that one becomes two.
    2. Scalar constants may multiply or divide q, k, the transposed key, and the scores.
    3. Where q and the transposed key are scaled already, and the scores aren't, the key's scale moves in front of the
       transpose: every product stays the same number.
    4. Otherwise s is the square root of all factors together. One FP16 factor less than 1 on each side also keeps the
       products smaller than a factor on the scores would.
    5. Declined: factors that aren't scalars (the cosine attention of Swin V2 has one per head) or whose product isn't
       positive; no factor at all; a transpose, a scaled key or scores that something else reads too; shapes that
       aren't known to match.

    Measured by TensorRT-RTX 1.7's layer list in FP16, batch 8: DINOv2 ViT-S/14 has 124 kernels before, 100 after;
    Swin-T with its position bias folded 141 before, 117 after.
    """

    name: ClassVar[str] = "attention-scale"

    def run(self, model: ir.Model) -> int:
        """See the class."""
        changes = 0
        for node in tuple(model.graph):
            found = _match(node)
            if found is not None:
                _rewrite(model.graph, node, found)
                changes += 1
        if changes:
            common.RemoveUnusedNodesPass()(model)
        return changes


def scales_scores(model: ir.Model) -> bool:
    """Whether the pass would take a factor from the scores of an attention: it keeps FP16's products smaller then."""
    return any((found := _match(node)) is not None and found.scores is not None for node in model.graph)


def _match(node: ir.Node) -> _Rewrite | None:
    """What is to be rewritten; None for another product, and for one that has the form already."""
    operands = _computed_operands(node)
    if operands is None:
        return None
    first, second = operands
    late = _unscaled(second)
    turned = _transposed_key(late.value)
    if turned is None:
        return None
    query, key, scores = _unscaled(first, shared=True), _unscaled(turned.value), _scaled_scores(node)
    if query.node is not None and scores.node is None and (key.node is None) != (late.node is None):
        if late.node is None:
            return None
        if late.node.op_type == "Mul":
            return _Rewrite(None, turned, _scalar_of(late.node), None)
    total = query.factor * late.factor * key.factor * scores.factor
    scaled = any(part.node is not None for part in (query, late, key, scores))
    if not scaled or not (math.isfinite(total) and total > 0):
        return None
    return _Rewrite(query.value, turned._replace(value=key.value), math.sqrt(total), scores.node)


def _computed_operands(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The operands of a MatMul of two activations; None of another node."""
    first, second = node.inputs[:2] if node.op_type == "MatMul" else (None, None)
    if first is None or second is None or is_constant(first) or is_constant(second):
        return None
    return first, second


def _unscaled(value: ir.Value, *, shared: bool = False) -> _Factor:
    """A value without the scalar that scales it. Not `shared`: only where nothing else reads the scaled value."""
    node = value.producer()
    single = shared or (len(value.uses()) == 1 and not value.is_graph_output())
    factor = None if node is None or not single else _factor(node)
    before = None if node is None or factor is None else _data_of(node)
    return _Factor(value, None, 1.0) if before is None or factor is None else _Factor(before, node, factor)


def _scaled_scores(product: ir.Node) -> _Factor:
    """The product's value, and the node that scales it, if that is all that reads it."""
    value = product.outputs[0]
    uses = value.uses()
    node = next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None
    factor = None if node is None else _factor(node)
    if node is None or factor is None or _data_of(node) is not value or node.outputs[0].is_graph_output():
        return _Factor(value, None, 1.0)
    return _Factor(value, node, factor)


def _factor(node: ir.Node) -> float | None:
    """What a Mul by, or a Div by, a scalar constant multiplies with."""
    if node.op_type not in {"Mul", "Div"}:
        return None
    scalar = node.inputs[1] if is_scalar(node.inputs[1]) else node.inputs[0]
    if scalar is None or not is_scalar(scalar) or (node.op_type == "Div" and scalar is node.inputs[0]):
        return None
    number = float(array_of(scalar).reshape(()))
    if node.op_type == "Mul":
        return number
    return 1 / number if number else None


def _scalar_of(node: ir.Node) -> ir.Value:
    scalar = node.inputs[1] if is_scalar(node.inputs[1]) else node.inputs[0]
    assert scalar is not None, "_factor has seen it"
    return scalar


def _data_of(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if is_scalar(node.inputs[1]) else node.inputs[1]


def _transposed_key(value: ir.Value) -> _Key | None:
    direct = _only_reader(value, "Transpose")
    if direct is not None:
        return _directly_transposed(direct)
    back = _only_reader(value, "Reshape")
    turned = None if back is None else _only_reader(back.inputs[0], "Transpose")
    if turned is None or list(turned.attributes.get_ints("perm", [])) != [0, 2, 1]:
        return None
    three = turned.inputs[0]
    flat = _only_reader(three, "Reshape")
    key = None if flat is None else flat.inputs[0]
    if key is not None and flat is not None and _only_exchanges(key, flat.outputs[0], value):
        return _Key(key)
    sizes = None if three is None else _split_sizes(three, value)
    return None if three is None or sizes is None else _Key(three, sizes=sizes)


def _split_sizes(three: ir.Value, back: ir.Value) -> tuple[int, ...] | None:
    """(-1, b, n, d) where three is [a·b, n, d] and back [a, b, d, n], at two batch sizes that only a follows."""
    found: set[tuple[int, ...]] = set()
    for batch in PROBES:
        flat, four = dimensions(three, batch), dimensions(back, batch)
        if flat is None or four is None or len(four) != 4 or flat != (four[0] * four[1], four[3], four[2]):
            return None
        found.add((-1, four[1], four[3], four[2]))
    return found.pop() if len(found) == 1 else None


def _directly_transposed(node: ir.Node) -> _Key | None:
    """The key of a Transpose that exchanges the last two axes, and of one that brings the heads forward too."""
    order, source = list(node.attributes.get_ints("perm", [])), node.inputs[0]
    if len(order) < _MATRIX or source is None:
        return None
    first = [*order[:-2], order[-1], order[-2]]
    if first == sorted(order):
        return _Key(source)
    return _Key(source, first) if first[-1] == len(order) - 1 else None


def _only_exchanges(key: ir.Value, flat: ir.Value, back: ir.Value) -> bool:
    """True where key is [a, b, n, d], flat [a·b, n, d] and back [a, b, d, n], at two batch sizes."""
    for batch in PROBES:
        sizes, three, four = (dimensions(value, batch) for value in (key, flat, back))
        if sizes is None or len(sizes) != 4:
            return False
        a, b, n, d = sizes
        if three != (a * b, n, d) or four != (a, b, d, n):
            return False
    return True


def _rewrite(graph: ir.Graph, node: ir.Node, found: _Rewrite) -> None:
    like, name = node.inputs[1], node_name(node)
    if like is None or found.key.value.dtype is None or like.shape is None:
        raise AssertionError("the pattern matched a MatMul without a typed key")
    if isinstance(found.scale, ir.Value):
        scale = found.scale
    else:
        scale = add_initializer(graph, f"{name}_root_scale", np.array(found.scale, np.float32))
    if found.query is not None:
        node.replace_input_with(0, _scaled(node, found.query, scale, "query"))
    key, rank = found.key.value, len(like.shape)
    if found.key.order is not None:
        key = _transpose(node, key, found.key.order, "key_heads")
    elif found.key.sizes is not None:
        key = _reshape(node, key, found.key.sizes)
    if key is not found.key.value:
        key.shape = ir.Shape([*like.shape[:-2], like.shape[-1], like.shape[-2]])
    turned = _transpose(node, _scaled(node, key, scale, "key"), [*range(rank - 2), rank - 1, rank - 2], "key_transpose")
    turned.shape = like.shape
    node.replace_input_with(1, turned)
    if found.scores is not None:
        for reader, index in tuple(found.scores.outputs[0].uses()):
            reader.replace_input_with(index, node.outputs[0])


def _transpose(node: ir.Node, value: ir.Value, order: list[int], what: str) -> ir.Value:
    assert value.dtype is not None, "the pattern matched a value with a type"
    name, scope = f"{node_name(node)}_{what}", dict(node.metadata_props)
    turn = ir.node("Transpose", [value], {"perm": order}, name=name, metadata_props=scope)
    return insert_before(node, turn, like=value, dtype=value.dtype)


def _reshape(node: ir.Node, value: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
    assert value.dtype is not None, "the pattern matched a value with a type"
    assert isinstance(node.graph, ir.Graph), "the node was found in a graph"
    name, scope = f"{node_name(node)}_key_heads", dict(node.metadata_props)
    target = add_initializer(node.graph, f"{name}_shape", np.array(sizes, np.int64))
    split = ir.node("Reshape", [value, target], name=name, metadata_props=scope)
    return insert_before(node, split, like=value, dtype=value.dtype)


def _scaled(node: ir.Node, value: ir.Value, scale: ir.Value, what: str) -> ir.Value:
    if value.dtype is None:
        raise AssertionError("the pattern matched a value without a type")
    scope = dict(node.metadata_props)
    mul = ir.node("Mul", [value, scale], name=f"{node_name(node)}_{what}_scale", metadata_props=scope)
    return insert_before(node, mul, like=value, dtype=value.dtype)


def _only_reader(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that makes a value, if it is of that kind and the value has one reader."""
    node = None if value is None else value.producer()
    if node is None or value is None or node.op_type != operator or len(value.uses()) != 1:
        return None
    return node
