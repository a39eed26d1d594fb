"""What of a smoothed graph FP16 can't hold, from what was seen of the graph before its smoothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import FloatPrecision
from gpusq_deploy.calibration import MOVES, Observations
from gpusq_deploy.graph import Moved, array_of, is_constant, value_name
from gpusq_deploy.progress import Reporter
from gpusq_deploy.quantize.fp16_overflow import Fp16Overflow, fp16_overflow_in, text_of
from gpusq_deploy.quantize.prepare import PlanInputs
from gpusq_deploy.text import counted, some

_BOUND = "a bound from what was"
_Bound = Callable[[ir.Value], float | None]


def find_fp16_overflow(
    inputs: PlanInputs, seen: Observations, float_type: FloatPrecision, reporter: Reporter
) -> Fp16Overflow:
    """What of the graph stays float32; nothing where the float type isn't FP16.

    Magnitudes are those of the ranges that are known, and those seen on a few of the samples, if any were. Of a tensor
    that smoothing made or changed it is a bound from above.
    """
    if float_type != "fp16":
        return Fp16Overflow()
    largest = _largest(inputs, seen, reporter)
    overflow = fp16_overflow_in(inputs.model, largest, looked=bool(seen.looked))
    if overflow.tensors:
        # What was seen first: where a model overflows says more than a bound, or which of its constants do.
        ordered = sorted(overflow.tensors, key=lambda tensor: (tensor.constant, tensor.origin.startswith(_BOUND)))
        kept = some([text_of(tensor) for tensor in ordered], 1)
        reporter.say(f"kept in FP32, since FP16 can't hold {'it' if len(ordered) == 1 else 'them'}: {kept}")
    return overflow


def _largest(inputs: PlanInputs, seen: Observations, reporter: Reporter) -> dict[str, tuple[float, str]]:
    """The largest magnitude known of each tensor, and where it is from."""
    table = inputs.table
    largest = {} if table is None else {entry.tensor: (entry.amax, entry.origin) for entry in table.ranges}
    bounded = bounds(inputs.model, seen.magnitudes, inputs.moved)
    unknown = [name for name in _float_tensors(inputs.model) if name not in bounded] if seen.looked else []
    if unknown:
        reporter.say(
            f"no bound is known of {counted(len(unknown), 'tensor')}, which FP16 may not hold: {some(unknown)}"
        )
    for tensor, amax in bounded.items():
        exact = tensor in seen.magnitudes and tensor not in inputs.moved
        if tensor not in largest or (exact and amax > largest[tensor][0]):
            largest[tensor] = (amax, seen.looked if exact else f"{_BOUND} {seen.looked}")
    return largest


def _float_tensors(model: ir.Model) -> Iterator[str]:
    return (value_name(value) for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT)


def bounds(model: ir.Model, seen: Mapping[str, float], moved: Mapping[str, Moved | None]) -> dict[str, float]:
    """The largest magnitude of every float32 tensor that is known, by name.

    1. A tensor that smoothing left alone: what was seen.
    2. One whose channels it scaled: (max|x| + max|z|) / min s.
    3. A new one, or one that isn't known channel by channel: by its operator. What is moved is no larger than where it
       comes from; a product by softmax no larger than its values; a product that lacks its bias no larger than the sum
       and the bias; a product, a sum or a difference with a constant by the constant.

    Args:
        model: The smoothed graph.
        seen: Of the graph before, by tensor.
        moved: Tensors of one name that mean something else in the two; see `moved_tensors`.
    """
    found: dict[str, float] = {}

    def known(value: ir.Value) -> float | None:
        name = value_name(value)
        change = moved.get(name)
        if name in seen and change is not None:
            return (seen[name] + float(np.abs(change.offset).max())) / float(change.factor.min())
        return seen.get(name) if name not in moved else None

    for node in model.graph:
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            amax = known(value)
            if amax is None:
                amax = _by_operator(node, lambda other: found.get(value_name(other), known(other)), known)
            if amax is not None:
                found[value_name(value)] = amax
    return found


def _by_operator(node: ir.Node, before: _Bound, behind: _Bound) -> float | None:
    """A bound of a node's first output from its inputs', or from what is behind it."""
    if node.op_type == "MatMul":
        return _product(node, before, behind)
    inputs = [value for value in node.inputs if value is not None]
    found = [before(value) for value in inputs if not is_constant(value)]
    known = [amax for amax in found if amax is not None]
    if not known or len(known) < len(found):
        return None
    if node.op_type in MOVES or node.op_type == "Concat":
        return max(known)
    if len(inputs) != 2 or len(known) != 1:
        return None
    divides = is_constant(inputs[1])
    return _with_constant(node.op_type, known[0], np.abs(array_of(inputs[divides])), divides=divides)


def _with_constant(operator: str, amax: float, constant: npt.NDArray[Any], *, divides: bool) -> float | None:
    """A bound of a sum, a difference, a product or a quotient with the magnitudes of a constant."""
    if operator in {"Add", "Sub"}:
        return amax + float(constant.max())
    if operator == "Mul":
        return amax * float(constant.max())
    return amax / float(constant.min()) if operator == "Div" and divides and constant.min() > 0 else None


def _product(node: ir.Node, before: _Bound, behind: _Bound) -> float | None:
    weights, values = node.inputs[:2]
    producer = None if weights is None else weights.producer()
    if producer is not None and producer.op_type == "Softmax" and values is not None:
        return before(values)
    for reader, index in node.outputs[0].uses():
        other = reader.inputs[1 - index] if reader.op_type == "Add" else None
        total = behind(reader.outputs[0]) if other is not None and is_constant(other) else None
        if other is not None and total is not None:
            return total + float(np.abs(array_of(other)).max())
    return None
