"""Remove nodes that give back what they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.graph.shapes import PROBES, dimensions
from gpusq_deploy.graph.values import array_of, is_constant

_MASK_AXES = 2


@dataclass(frozen=True, slots=True)
class DropNoOps:
    """Let readers read a node's input where its output is the same tensor.

    1. A Pad whose pads are all 0: windows that divide the image leave one in front of every partition.
    2. A Transpose that leaves every axis where it is.
    3. A Reshape or an Expand whose input and output have equal shapes at two batch sizes, in every dimension.
    4. An Add of zeros with two axes or more, whose output has its input's shape: an attention mask that masks nothing,
       once it is one constant. Zeros with one axis are a bias, which rounding may correct.
    5. Declined: a node whose output the graph answers, and shapes that aren't known.

    onnxscript 0.7.2's optimizer leaves the Pad of 1, and window-norm then finds nothing.
    """

    name: ClassVar[str] = "drop-no-ops"

    def run(self, model: ir.Model) -> int:
        """See the class."""
        changes = 0
        for node in model.graph:
            output = node.outputs[0]
            if node.inputs and node.inputs[0] is not None and _is_no_op(node) and not output.is_graph_output():
                for reader, index in tuple(output.uses()):
                    reader.replace_input_with(index, node.inputs[0])
                changes += 1
        if changes:
            common.RemoveUnusedNodesPass()(model)
        return changes


def _is_no_op(node: ir.Node) -> bool:
    if node.op_type == "Pad":
        return is_constant(node.inputs[1]) and node.inputs[1] is not None and not np.any(array_of(node.inputs[1]))
    if node.op_type == "Transpose":
        order = list(node.attributes.get_ints("perm", []))
        return bool(order) and order == sorted(order)
    if node.op_type == "Add":
        zeros = node.inputs[1]
        if zeros is None or not is_constant(zeros) or array_of(zeros).ndim < _MASK_AXES or np.any(array_of(zeros)):
            return False
        return _same_shape(node)
    return node.op_type in {"Reshape", "Expand"} and _same_shape(node)


def _same_shape(node: ir.Node) -> bool:
    source = node.inputs[0]
    if source is None:
        return False
    shapes = [(dimensions(source, batch), dimensions(node.outputs[0], batch)) for batch in PROBES]
    return all(before is not None and before == after for before, after in shapes)
