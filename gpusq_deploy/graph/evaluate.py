"""What single nodes answer, by onnx's reference implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]


def evaluate(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> tuple[Array, ...]:
    """All outputs of a node without subgraphs, for these values of its inputs; None is an input that isn't there."""
    proto = ir.to_proto(node)
    feeds: dict[str, Array] = {}
    for index, array in enumerate(inputs):
        if array is not None:  # renamed: one value may stand at several places
            proto.input[index] = f"input{index}"
            feeds[proto.input[index]] = array
    graph = onnx.GraphProto(name="node", node=[proto])
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in feeds)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in proto.output)
    imports = [onnx.OperatorSetIdProto(domain="", version=opset)]
    model = onnx.ModelProto(ir_version=10, graph=graph, opset_import=imports)
    answers = cast("list[Array]", ReferenceEvaluator(model).run(None, feeds))
    return tuple(np.ascontiguousarray(answer) for answer in answers)
