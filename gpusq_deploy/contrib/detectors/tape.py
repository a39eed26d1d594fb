"""ONNX operators as Python calls, to write a graph down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Operand = ir.Value | npt.NDArray[Any] | np.generic | float | Sequence[float]
OPSET = 20  # of what lies between: no newer operator is needed, and ONNX Runtime 1.19 has them all


class Tape:
    """Collects nodes and constants in the order of the calls; a Python int or list is int64, a float float32."""

    def __init__(self) -> None:
        self._nodes: list[ir.Node] = []
        self._constants: list[ir.Value] = []

    def __call__(self, operator: str, *inputs: Operand, **attributes: Any) -> ir.Value:
        """The only, or first, output of a new node."""
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, outputs: int, *inputs: Operand, **attributes: Any) -> Sequence[ir.Value]:
        """All outputs of a new node."""
        node = ir.node(
            operator,
            [self._value(operand) for operand in inputs],
            attributes,
            num_outputs=outputs,
            name=f"{operator}_{len(self._nodes)}",
        )
        for place, value in enumerate(node.outputs):
            value.name = f"{node.name}_{place}"
        self._nodes.append(node)
        return node.outputs

    def model(self, inputs: Sequence[ir.Value], outputs: Mapping[str, ir.Value], *, name: str) -> ir.Model:
        """The graph from `inputs` to `outputs`, which get these names. The types of outputs are as they were given."""
        for title, value in outputs.items():
            value.name = title
        graph = ir.Graph(
            inputs,
            list(outputs.values()),
            nodes=self._nodes,
            initializers=self._constants,
            opset_imports={"": OPSET},
            name=name,
        )
        return ir.Model(graph, ir_version=10, producer_name="gpusq-deploy")

    def _value(self, operand: Operand) -> ir.Value:
        if isinstance(operand, ir.Value):
            return operand
        array = np.asarray(operand)
        if not isinstance(operand, (np.ndarray, np.generic)):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        name = f"constant_{len(self._constants)}"
        tensor = ir.tensor(np.ascontiguousarray(array) if array.ndim else array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self._constants.append(value)
        return value


def graph_input(name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """An input; a dimension by name is dynamic."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def typed(value: ir.Value, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    """A value whose shape and type a graph's output needs to declare."""
    value.shape, value.type = ir.Shape(shape), ir.TensorType(dtype)
    return value
