"""Small questions about values and nodes, and the few ways in which passes change them."""

from __future__ import annotations

import ast
import re
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.errors import GpusqError

_EXPORT_AGAIN = "is the file damaged? export the model again"
NAME_SCOPES = "pkg.torch.onnx.name_scopes"


def value_name(value: ir.Value) -> str:
    """The value's name; every value of a loaded or exported graph has one."""
    if value.name is None:
        maker = value.producer()
        place = "an input" if maker is None else f"an output of {node_name(maker)}"
        raise GpusqError("the graph has a tensor without a name", place=place, hint=_EXPORT_AGAIN)
    return value.name


def node_name(node: ir.Node) -> str:
    """The node's name."""
    return node.name or node.op_type


def array_of(value: ir.Value) -> npt.NDArray[Any]:
    """The constant that an initializer holds."""
    if value.const_value is None:
        raise GpusqError("not a constant", place=value_name(value), hint=_EXPORT_AGAIN)
    return cast("npt.NDArray[Any]", value.const_value.numpy())


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer with data."""
    return value is not None and value.is_initializer() and value.const_value is not None


def is_scalar(value: ir.Value | None) -> bool:
    """True for a constant of one element that broadcasts without adding an axis: shape [] or [1]."""
    return value is not None and is_constant(value) and value.shape is not None and value.shape.numpy() in ((), (1,))


def module_of(node: ir.Node) -> str:
    """Dotted name of the torch module that the node came from; empty where the exporter recorded none.

    The scopes run from the root to the operator: ['', 'blocks', 'blocks.0.mlp.fc1', 'linear_2'].
    """
    recorded = node.metadata_props.get(NAME_SCOPES)
    if not recorded:
        return ""
    try:
        names = [str(scope) for scope in ast.literal_eval(recorded)]
    except (ValueError, SyntaxError, TypeError):
        return ""
    return names[-2] if len(names) > 1 else ""


def per_sample_size(value: ir.Value) -> int | None:
    """Elements of a value for one sample, with N = `batch` as the leading factor; None where it is unknown.

    The exporter writes symbolic dimensions as `batch` or as products such as `4*batch`. A second symbolic dimension
    is something else than N.
    """
    if value.shape is None or sum(not isinstance(dimension, int) for dimension in value.shape) > 1:
        return None
    total = 1
    for dimension in value.shape:
        if isinstance(dimension, int):
            total *= dimension
        elif dimension.value is None or not re.fullmatch(r"(\d+\*)?\w+(\*\d+)?", dimension.value):
            return None
        else:
            total *= int(np.prod([int(number) for number in re.findall(r"\b\d+\b", dimension.value)] or [1]))
    return total


def static_batch(graph: ir.Graph) -> int | None:
    """The batch that the first input is fixed to; None where it is free, or where there is no input."""
    shape = graph.inputs[0].shape if graph.inputs else None
    first = shape[0] if shape else None
    return first if isinstance(first, int) else None


def add_initializer(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    """Register a new constant under a name that is not yet used."""
    if name in graph.initializers:
        raise GpusqError("the graph already has a tensor of that name", place=name)
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def norms_tokens(norm: ir.Node) -> bool:
    """Whether a LayerNormalization is over the last axis alone: of each token by itself."""
    shape = norm.outputs[0].shape
    return shape is not None and norm.attributes.get_int("axis", -1) in {-1, len(shape) - 1}


def norm_last_axis(norm: ir.Node) -> None:
    """Name the last axis of such a LayerNormalization from the back, before the number of axes changes."""
    norm.attributes["axis"] = ir.AttrInt64("axis", -1)


def insert_before(anchor: ir.Node, node: ir.Node, *, like: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Put `node` in front of `anchor`; its only output gets `like`'s shape and the given type."""
    graph = anchor.graph
    if not isinstance(graph, ir.Graph):
        raise GpusqError("the node stands in no graph", place=node_name(anchor))
    output = node.outputs[0]
    output.name = f"{node_name(node)}_out"
    output.type = ir.TensorType(dtype)
    output.shape = like.shape
    graph.insert_before(anchor, node)
    return output
