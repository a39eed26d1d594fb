"""Linear layers of an ONNX file in the form that our own export gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.graph import add_initializer, array_of, is_constant, node_name, value_name


def plain_layers(model: ir.Model) -> int:
    """Bring layers with constant weights to the form that passes look for; how many were changed.

    1. A Gemm's alpha goes into its weight, its beta into its bias, and a transposed input through a Transpose.
    2. A constant bias [1, N] or [1, 1, N], of a Gemm or of the Add behind a MatMul, becomes [N].
    """
    changes = 0
    for node in list(model.graph):
        if node.op_type == "Gemm" and is_constant(node.inputs[1]):
            changes += _plain_gemm(model.graph, node)
        elif node.op_type == "Add":
            changes += _plain_add(model.graph, node)
    return changes


def _plain_gemm(graph: ir.Graph, node: ir.Node) -> int:
    before = (dict(node.attributes), tuple(node.inputs))
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if alpha != 1:
        _replace(graph, node, 1, _array(node, 1) * np.float32(alpha))
    node.attributes.pop("alpha", None)
    if bias is None or is_constant(bias):
        if bias is not None and beta != 1:
            _replace(graph, node, 2, _array(node, 2) * np.float32(beta))
        node.attributes.pop("beta", None)
    if is_constant(node.inputs[2] if len(node.inputs) > 2 else None):
        _flatten(graph, node, 2)
    if node.attributes.get_int("transA", 0):
        turned = ir.node("Transpose", [node.inputs[0]], {"perm": [1, 0]}, name=f"{node_name(node)}_input")
        turned.outputs[0].name = f"{node_name(node)}_input"
        graph.insert_before(node, turned)
        node.replace_input_with(0, turned.outputs[0])
        node.attributes.pop("transA")
    return int(before != (dict(node.attributes), tuple(node.inputs)))


def _plain_add(graph: ir.Graph, node: ir.Node) -> int:
    for index, value in enumerate(node.inputs):
        other = node.inputs[1 - index]
        product = None if other is None else other.producer()
        weighted = product is not None and product.op_type == "MatMul" and is_constant(product.inputs[1])
        if weighted and is_constant(value):
            return _flatten(graph, node, index)
    return 0


def _flatten(graph: ir.Graph, node: ir.Node, index: int) -> int:
    """A row [1, …, 1, N] as [N]; 1 where it was one."""
    bias = _array(node, index)
    if bias.ndim < 2 or bias.size != bias.shape[-1]:
        return 0
    _replace(graph, node, index, bias.reshape(-1))
    return 1


def _array(node: ir.Node, index: int) -> npt.NDArray[Any]:
    value = node.inputs[index]
    assert value is not None, "the caller has seen it"
    return array_of(value)


def _replace(graph: ir.Graph, node: ir.Node, index: int, array: npt.NDArray[Any]) -> None:
    value = node.inputs[index]
    assert value is not None, "the caller has seen it"
    name = f"{value_name(value)}_of_{node_name(node)}"
    node.replace_input_with(index, add_initializer(graph, name, np.asarray(array, order="C")))
