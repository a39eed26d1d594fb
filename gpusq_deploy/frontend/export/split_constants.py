"""Parts of a weight as weights: torch's MultiheadAttention splits its packed projection where inputs differ."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.graph import add_initializer, array_of, evaluate, is_constant, value_name


def split_constants(model: ir.Model) -> int:
    """Replace each Split of a constant by its parts, which then are constants like any other; how many Splits went.

    Left alone: Splits whose parts the graph answers.
    """
    splits = [node for node in model.graph if node.op_type == "Split" and _can_go(node)]
    for node in splits:
        arrays = [None if value is None else array_of(value) for value in node.inputs]
        parts = evaluate(node, arrays, model.opset_imports.get("", 20))
        for value, part in zip(tuple(node.outputs), parts, strict=True):
            constant = add_initializer(model.graph, f"{value_name(value)}_constant", part)
            for reader, index in tuple(value.uses()):
                reader.replace_input_with(index, constant)
    if splits:
        common.RemoveUnusedNodesPass()(model)
    return len(splits)


def _can_go(node: ir.Node) -> bool:
    constant = all(value is None or is_constant(value) for value in node.inputs)
    return constant and not any(value.is_graph_output() for value in node.outputs)
