"""The weights of a graph that the 2:4 check and the Q/DQ lint don't read, by operator: nobody may take them for clean.

A weight here is a stored float or code tensor with two axes of more than one index. A node reads it where one of its
inputs is computed from stored tensors alone. Operators that multiply no weight (adds, norms, lookups) are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from gpusq_deploy.artifacts import Finding
from gpusq_deploy.graph.values import node_name, value_name
from gpusq_deploy.numerics import is_matrix
from gpusq_deploy.text import counted, some

_ONNX = frozenset({"", "ai.onnx"})
# All of ONNX's own operators that multiply or carry weights. The bodies of If, Loop and Scan are walked.
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "DeformConv", "ConvInteger", "MatMulInteger"}) | {
    *("QLinearMatMul", "QLinearConv", "Einsum", "RNN", "GRU", "LSTM", "Attention", "Loop", "Scan", "SequenceMap")
}
# Of other domains everything counts but what multiplies no weight: these, and what has such a word in its name.
_HARMLESS = frozenset({"QuantizeLinear", "DequantizeLinear", "MultiHeadAttention", "GatherBlockQuantized"})
_HARMLESS_WORDS = re.compile(
    r"Norm|Gelu|Bias(Add|Softmax|Dropout)|Embed|RelativePositionBias|Pool|Softmax|Sigmoid|Relu|Resize|"
    r"QLinear(Add|Mul|Concat|Where|Reduce)"
)
# Whose first input alone is the tensor; the others are scales, shapes and places.
_FIRST_ALONE = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "Transpose", "Identity", "Reshape"}) | {
    *("Squeeze", "Unsqueeze", "Flatten", "Gather", "Slice")
}
_NUMBERS = frozenset(
    {ir.DataType.STRING, ir.DataType.UNDEFINED, ir.DataType.BOOL}
    | {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64}
)
# Learned queries and position tables are stacks too: below this share of the parameters they are no finding.
_SMALL = 0.01
_HINT = "validate the float or Q/DQ model that this file was made from, or fold and inline its weights"


@dataclass(slots=True)
class _Group:
    """The weights of one operator, in one place of the graph. `stacks`: only stacks of matrices in float products."""

    weights: dict[str, int] = field(default_factory=dict[str, int])
    nodes: dict[str, None] = field(default_factory=dict[str, None])
    stacks: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Unread:
    """The weights that one operator multiplies unread. `share` is theirs of all parameters in the file, 0...1."""

    operator: str
    nodes: tuple[str, ...]
    weights: int
    parameters: int
    share: float
    small: bool

    def text(self) -> str:
        """One sentence."""
        verb = "is" if self.weights == 1 else "are"
        return (
            f"{counted(self.weights, 'weight')} of {self.operator} {verb} not checked: {self.parameters:,} parameters, "
            f"{self.share:.1%} of the file's"
        )

    def finding(self) -> Finding:
        """As a finding of rule `not-read`."""
        return Finding(rule="not-read", place=some(self.nodes), what=self.text(), hint=_HINT)


def unread_weights(model: ir.Model, read: Iterable[str]) -> tuple[Unread, ...]:
    """The weights that nobody looked at, by operator, the most parameters first.

    Args:
        model: The graph, with its Constant nodes lifted to initializers.
        read: Names of the main graph's initializers that were looked at.
    """
    groups: dict[str, _Group] = {}
    total = _collect(model, groups, frozenset(read))
    found = [
        Unread(
            operator=operator,
            nodes=tuple(group.nodes),
            weights=len(group.weights),
            parameters=(parameters := sum(group.weights.values())),
            share=parameters / max(total, 1),
            small=group.stacks and parameters < _SMALL * total,
        )
        for operator, group in groups.items()
    ]
    return tuple(sorted(found, key=lambda unread: -unread.parameters))


def _collect(model: ir.Model, groups: dict[str, _Group], read: frozenset[str]) -> int:
    """Fill `groups`; the number of all stored parameters."""
    sources: dict[ir.Value, frozenset[ir.Value]] = {}
    stored: dict[ir.Value, int] = {}
    seen = {value for name, value in model.graph.initializers.items() if name in read}
    for graph, where in _graphs(model.graph):
        for value in graph.initializers.values():
            _store(value, sources, stored)
        for node in graph:
            inputs = [_sources(value, sources) for value in node.inputs]
            if _is_constant(node, inputs):
                _pass_on(node, inputs, sources, stored)
            elif _multiplies(node):
                _count(node, inputs, where, groups, seen, stored)
    return sum(stored.values())


def _graphs(main: ir.Graph) -> Iterator[tuple[ir.Graph, str]]:
    """The graph and the bodies within, each with the words that say where it is. Outer ones come first."""
    waiting = [(main, "")]
    while waiting:
        graph, where = waiting.pop(0)
        yield graph, where
        waiting += [(body, f" in the body of {node.op_type}") for node in graph for body in _bodies(node)]


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _store(value: ir.Value, sources: dict[ir.Value, frozenset[ir.Value]], stored: dict[ir.Value, int]) -> None:
    tensor = value.const_value
    if tensor is None:
        return
    sources[value] = frozenset({value})
    if tensor.dtype not in _NUMBERS:
        stored[value] = math.prod(tensor.shape.numpy())


def _sources(value: ir.Value | None, sources: dict[ir.Value, frozenset[ir.Value]]) -> frozenset[ir.Value] | None:
    """The stored tensors that a value is computed from; None where it depends on an input of the model."""
    return frozenset() if value is None else sources.get(value)


def _is_constant(node: ir.Node, inputs: list[frozenset[ir.Value] | None]) -> bool:
    computed = None not in inputs and (bool(inputs) or node.op_type == "Constant")
    return computed and not any(True for _ in _bodies(node))


def _pass_on(
    node: ir.Node,
    inputs: list[frozenset[ir.Value] | None],
    sources: dict[ir.Value, frozenset[ir.Value]],
    stored: dict[ir.Value, int],
) -> None:
    used = inputs[:1] if node.op_type in _FIRST_ALONE else inputs
    found = frozenset[ir.Value]().union(*(entry for entry in used if entry is not None))
    for output in node.outputs:
        sources[output] = found
    held = node.attributes.get("value") if node.op_type == "Constant" else None
    if held is not None and held.type == ir.AttributeType.TENSOR:
        output = node.outputs[0]
        output.const_value = held.as_tensor()
        _store(output, sources, stored)


def _multiplies(node: ir.Node) -> bool:
    if node.domain in _ONNX:
        return node.op_type in _PRODUCTS
    return node.op_type not in _HARMLESS and not _HARMLESS_WORDS.search(node.op_type)


def _count(
    node: ir.Node,
    inputs: list[frozenset[ir.Value] | None],
    where: str,
    groups: dict[str, _Group],
    seen: set[ir.Value],
    stored: dict[ir.Value, int],
) -> None:
    weights = _unseen_weights(inputs, seen, stored)
    held = _in_attributes(node)
    if not weights and not held:
        return
    group = groups.setdefault(f"{node.op_type}{where}" if where else _operator(node, inputs, weights), _Group())
    group.nodes[node_name(node)] = None
    group.weights |= {value_name(root): size for root, size in weights.items()} | held
    # A quantised stack is a weight: queries and tables are stored in float.
    plain = node.domain in _ONNX and node.op_type in {"MatMul", "Einsum", "Attention"} and not held
    group.stacks &= plain and all(_is_float_stack(root) for root in weights)


def _unseen_weights(
    inputs: list[frozenset[ir.Value] | None], seen: set[ir.Value], stored: dict[ir.Value, int]
) -> dict[ir.Value, int]:
    """Sizes of the stored matrices that inputs come from and that nobody has read, in the order of their names."""
    roots = [root for entry in inputs if entry for root in entry if root in stored and root not in seen]
    return {root: stored[root] for root in sorted(roots, key=value_name) if is_matrix(_shape(root))}


def _operator(node: ir.Node, inputs: list[frozenset[ir.Value] | None], weights: Iterable[ir.Value]) -> str:
    """The operator's name; where we read it elsewhere, with what keeps us from reading it here."""
    if node.domain not in _ONNX:
        return f"{node.domain}.{node.op_type}"
    if node.op_type not in {"MatMul", "Gemm", "Conv"}:
        return node.op_type
    if any(root in node.inputs for root in weights):
        return f"{node.op_type} (not a matrix)"
    operands = [value for value, entry in zip(node.inputs, inputs, strict=True) if entry and value is not None]
    makers = {maker.op_type for value in operands if (maker := value.producer()) is not None}
    return f"{node.op_type} (weight behind {', '.join(sorted(makers))})"


def _in_attributes(node: ir.Node) -> dict[str, int]:
    """Sizes of the matrices and long lists of numbers that a node holds itself."""
    found: dict[str, int] = {}
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.TENSOR and is_matrix(shape := attribute.as_tensor().shape.numpy()):
            found[f"{node_name(node)}.{name}"] = math.prod(shape)
        elif attribute.type == ir.AttributeType.FLOATS and len(attribute.as_floats()) >= 64:
            found[f"{node_name(node)}.{name}"] = len(attribute.as_floats())
    return found


def _shape(value: ir.Value) -> tuple[int, ...]:
    return () if value.const_value is None else tuple(value.const_value.shape.numpy())


def _is_float_stack(value: ir.Value) -> bool:
    dtype = None if value.const_value is None else value.const_value.dtype
    return dtype is not None and dtype.is_floating_point() and sum(size > 1 for size in _shape(value)) > 2
