"""What an ONNX file may hold that no build starts from."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from gpusq_deploy.errors import GpusqError
from gpusq_deploy.text import counted, some

_STANDARD = frozenset({"", "ai.onnx"})
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
_QUANTISED_PREFIXES = ("QLinear", "MatMulNBits", "QGemm", "QAttention", "DynamicQuantize")
_BODIES = frozenset({ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS})
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def require_float(model: ir.Model, place: str) -> None:
    """Refuse a file that is quantised already.

    Raises:
        GpusqError: That is so.
    """
    found = Counter(
        node.op_type
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.op_type in _QUANTISED or node.op_type.startswith(_QUANTISED_PREFIXES)
    )
    if found:
        kinds = ", ".join(f"{count} {name}" for name, count in found.most_common(3))
        raise GpusqError(
            f"the file is quantised already: it has {kinds}",
            place=place,
            hint="give the float model that it was made from; gpusq-bench and gpusq-eval take this file as it is",
        )


def require_known_operators(model: ir.Model, place: str) -> None:
    """Refuse sequences, and operators outside the ONNX standard.

    Raises:
        GpusqError: The graph holds some; names them.
    """
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in model.graph if node.domain not in _STANDARD})
    if foreign:
        raise GpusqError(
            f"the graph has operators outside the ONNX standard: {some(foreign)}",
            place=place,
            hint="give the file as its exporter wrote it, not as ONNX Runtime's optimiser did",
        )
    odd = [node.op_type for node in model.graph if "Sequence" in node.op_type or node.op_type.startswith("Optional")]
    if odd:
        raise GpusqError(
            f"the graph passes sequences or optional values: {some(sorted(set(odd)))}",
            place=place,
            hint="export a model whose tensors are passed one by one",
        )


def require_no_bodies(model: ir.Model, place: str) -> None:
    """Refuse control flow.

    Raises:
        GpusqError: The graph holds some; names it.
    """
    bodies = sorted({node.op_type for node in model.graph if any(a.type in _BODIES for a in node.attributes.values())})
    if bodies:
        raise GpusqError(
            f"the graph branches or loops on data: it has {', '.join(bodies)}",
            place=place,
            hint="export it without control flow on data; branches on shapes alone are decided here",
        )


def require_one_input(model: ir.Model, place: str) -> ir.Value:
    """The graph's one input, a floating-point tensor [N, …].

    Raises:
        GpusqError: It has none, several, or one of another kind.
    """
    inputs = list(model.graph.inputs)
    if len(inputs) != 1:
        names = ", ".join(f"{value.name} {value.shape or ''}".strip() for value in inputs)
        raise GpusqError(
            f"the graph takes {counted(len(inputs), 'input')}{f': {names}' if names else ''}; calibration gives one",
            place=place,
            hint="export the model with its further inputs fixed, as constants",
        )
    (value,) = inputs
    if value.dtype not in _FLOATS:
        kind = "no tensor" if value.dtype is None else value.dtype.name
        raise GpusqError(
            f"input {value.name} is {kind}, not float32 or half precision",
            place=place,
            hint="export the model without its preprocessing: from the normalised float32 [N, C, H, W] on",
        )
    if value.shape is None or len(value.shape) < 2:
        shape = "no shape" if value.shape is None else f"the shape {value.shape}"
        raise GpusqError(
            f"input {value.name} has {shape}, not an axis of samples and more",
            place=place,
            hint="export the model with the shape of its input, [N, C, H, W]",
        )
    return value
