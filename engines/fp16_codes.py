"""ONNX Runtime before 1.30 cuts the codes of FP16 values off, where ONNX has them rounded: 126.75 becomes 126.

Python 3.10 gets no newer one than 1.23. The same graph that quantises in FP32 is rounded by all of them.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.graph import insert_before, node_name

_ONNX = frozenset({"", "ai.onnx"})


def quantised_in_float32(path: Path) -> bytes | None:
    """The model with every QuantizeLinear of FP16 values behind casts to FP32; None where it has none.

    The casts are exact, and what is divided is rounded once, so the codes are those of ONNX's definition. External data
    stays where it is, and is still named as it lies beside the file.
    """
    model = ir.load(path)
    found = [node for node in model.graph if _takes_fp16(node)]
    for node in found:
        for index in (0, 1):  # the values and the scale
            value = node.inputs[index]
            assert value is not None, "QuantizeLinear has both"
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{node_name(node)}_float32_{index}")
            node.replace_input_with(index, insert_before(node, cast, like=value, dtype=ir.DataType.FLOAT))
    return ir.to_proto(model).SerializeToString() if found else None


def _takes_fp16(node: ir.Node) -> bool:
    """By the scale, which has the values' type: theirs a graph needn't say."""
    if node.op_type != "QuantizeLinear" or node.domain not in _ONNX:
        return False
    scale = node.inputs[1]
    if scale is None:
        return False
    return ir.DataType.FLOAT16 in {scale.dtype, None if scale.const_value is None else scale.const_value.dtype}
