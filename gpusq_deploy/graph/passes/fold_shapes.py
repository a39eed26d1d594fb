"""Make the targets of Reshape constants where only the batch is dynamic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.graph.shapes import PROBES, Ints, dimensions, shape_value
from gpusq_deploy.graph.values import add_initializer, is_constant, is_scalar, node_name


@dataclass(frozen=True, slots=True)
class FoldShapes:
    """Fold shape arithmetic into constants, so that builders see which dimensions are static.

    1. The target of a Reshape is worked out at two batch sizes. Dimensions that agree become constants; if one
       differs, it becomes -1.
    2. Shapes that the exporter left open on the outputs of such Reshapes, and of the Transpose and Mul nodes behind
       them, are filled in.
    3. Shape arithmetic that nothing reads any more is removed.
    4. Declined: targets that depend on data, and those in which two dimensions follow the batch.

    onnxscript 0.7.2's optimizer leaves such targets where the batch is dynamic, and attention-scale then finds nothing.
    """

    name: ClassVar[str] = "fold-shapes"

    def run(self, model: ir.Model) -> int:
        """See the class."""
        changes = 0
        for node in model.graph:
            if node.op_type == "Reshape":
                changes += _fold(model.graph, node)
            _fill_shape(node)
        if changes:
            common.RemoveUnusedNodesPass()(model)
        return changes


def _fold(graph: ir.Graph, node: ir.Node) -> int:
    target = node.inputs[1]
    if target is None or is_constant(target):
        return 0
    found = [shape_value(target, batch) for batch in PROBES]
    if found[0] is None or found[1] is None:
        return 0
    folded = _agreed(found[0], found[1])
    if folded is None:
        return 0
    node.replace_input_with(1, add_initializer(graph, f"{node_name(node)}_target", folded))
    return 1


def _agreed(first: Ints, second: Ints) -> Ints | None:
    folded = np.where(first == second, first, -1)
    return folded if np.count_nonzero(folded == -1) <= 1 else None


def _fill_shape(node: ir.Node) -> None:
    output = node.outputs[0]
    if dimensions(output, 1) is not None:
        return
    if node.op_type == "Reshape" and is_constant(node.inputs[1]):
        _fill_reshaped(node, output)
    elif node.op_type == "Transpose" and node.inputs[0] is not None and node.inputs[0].shape is not None:
        order = node.attributes.get_ints("perm", list(reversed(range(len(node.inputs[0].shape)))))
        output.shape = ir.Shape([node.inputs[0].shape[axis] for axis in order])
    elif node.op_type == "Mul" and is_scalar(node.inputs[1]) and node.inputs[0] is not None:
        output.shape = node.inputs[0].shape


def _fill_reshaped(node: ir.Node, output: ir.Value) -> None:
    """The -1 of a target is batch · k; k follows from the number of elements for one sample."""
    target, source = shape_value(node.inputs[1], 1), node.inputs[0]
    total = None if source is None else dimensions(source, 1)
    if target is None or total is None or (target == 0).any():
        return
    rest = int(np.prod(target[target > 0]))
    factor = int(np.prod(total)) // rest
    symbol = "batch" if factor == 1 else f"{factor}*batch"
    output.shape = ir.Shape([int(size) if size > 0 else symbol for size in target])
