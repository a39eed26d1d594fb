"""Turn a float32 graph into FP16 or BF16, strongly typed, with float32 inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.artifacts import FloatPrecision
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.mapped import release
from gpusq_deploy.graph.provenance import is_kept
from gpusq_deploy.graph.values import add_initializer, array_of, insert_before, node_name, value_name
from gpusq_deploy.numerics import FP16_LARGEST, stands_for_infinity

# Inputs that ONNX defines as float32 whatever the data's type is.
_FLOAT32_INPUTS = {"Resize": frozenset({1, 2}), "NonMaxSuppression": frozenset({0, 1, 3, 4})}
_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16, "fp32": ir.DataType.FLOAT}
_NUMPY: dict[FloatPrecision, np.dtype[Any]] = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_LARGEST: dict[FloatPrecision, float] = {"fp16": FP16_LARGEST, "bf16": float.fromhex("0x1.fep127")}


@dataclass(frozen=True, slots=True)
class CastToFloatType:
    """Everything float32 becomes `precision`.

    1. Initializers are rounded to nearest even. A finite value that overflows stops the build and is named.
    2. Graph inputs stay float32 and are cast once, in front of their first reader; outputs are cast back.
    3. `Cast(to=float32)`, and the float32 value of `ConstantOfShape`, follow.
    4. A scalar that would vanish becomes the smallest number of the type: an epsilon in front of a division must not
       become zero.
    5. Float32's largest number, of either sign, stands for infinity in attention masks: it becomes the type's largest.
    6. Declined: a Range of floats, which ONNX doesn't define for FP16; and operators with an input that ONNX defines as
       float32 only (Resize's scales, NonMaxSuppression), when that input is computed in the graph. Constant ones stay
       float32; one that is data as well becomes two.
    7. Nodes that KeepWide marked stay float32, with the constants that they alone read.

    LayerNormalization keeps its `stash_type` of float32: its sums are not taken in FP16.
    """

    precision: FloatPrecision
    name: ClassVar[str] = "cast"

    def run(self, model: ir.Model) -> int:
        """See the class.

        Raises:
            GpusqError: A weight overflows, or an operator is declined.
        """
        graph = model.graph
        target = _TYPES[self.precision]
        if target == ir.DataType.FLOAT or not any(value.dtype == ir.DataType.FLOAT for value in _inner(graph)):
            return 0
        _separate_float32_inputs(graph)
        kept = _float32_only(graph) | _kept_constants(graph)
        changes = sum(self._cast_initializer(value) for value in graph.initializers.values() if value not in kept)
        for node in graph:
            if not is_kept(node):
                changes += _retarget(node, target, self.precision)
        _cast_inputs(graph, target)
        _cast_outputs(graph, target)
        return changes

    def _cast_initializer(self, value: ir.Value) -> bool:
        if value.dtype != ir.DataType.FLOAT:
            return False
        after = _narrowed(array_of(value), self.precision, place=f"tensor {value_name(value)}")
        release(value)
        value.const_value = ir.tensor(after, name=value.name)
        value.type = ir.TensorType(_TYPES[self.precision])
        return True


def _narrowed(before: npt.NDArray[Any], precision: FloatPrecision, *, place: str) -> npt.NDArray[Any]:
    """A float32 constant in the float type; rules 1, 4 and 5 of `CastToFloatType`."""
    with np.errstate(over="ignore"):
        after = before.astype(_NUMPY[precision])
    infinite = stands_for_infinity(before)
    after[infinite] = np.copysign(_LARGEST[precision], before[infinite]).astype(after.dtype)
    if not np.array_equal(np.isfinite(before), np.isfinite(after.astype(np.float32))):
        largest = float(np.max(np.abs(before[np.isfinite(before)])))
        raise GpusqError(
            f"a constant of magnitude {largest:.6g} does not fit {precision}",
            place=place,
            hint="build with --bf16 or --fp32",
        )
    if after.size == 1 and before.any() and not after.any():
        after = np.nextafter(after, np.ones_like(after)) * np.sign(before).astype(after.dtype)
    return after


def _inner(graph: ir.Graph) -> list[ir.Value]:
    """Values that the pass changes; the float32 graph inputs and outputs stay."""
    fixed = set(graph.outputs) | _float32_only(graph) | _kept_constants(graph)
    values = [*graph.initializers.values(), *(output for node in graph if not is_kept(node) for output in node.outputs)]
    return [value for value in values if value not in fixed]


def _kept_constants(graph: ir.Graph) -> set[ir.Value]:
    values = graph.initializers.values()
    return {value for value in values if value.uses() and all(is_kept(reader) for reader, _ in value.uses())}


def _float32_only(graph: ir.Graph) -> set[ir.Value]:
    kept: set[ir.Value] = set()
    for node in graph:
        if node.op_type == "Range" and not is_kept(node) and node.outputs[0].dtype == ir.DataType.FLOAT:
            raise GpusqError(
                "Range counts in float32, which has no FP16 form",
                place=f"node {node_name(node)}",
                hint="build with --fp32",
            )
        for index in _FLOAT32_INPUTS.get(node.op_type, frozenset()):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None:
                continue
            if not value.is_initializer():
                raise GpusqError(
                    f"{node.op_type} needs a float32 input that the graph computes",
                    place=f"node {node_name(node)}",
                    hint="build with --fp32",
                )
            kept.add(value)
    return kept


def _separate_float32_inputs(graph: ir.Graph) -> None:
    """A constant that is read both as a float32 input and as data becomes two."""
    for node in graph:
        for index in _FLOAT32_INPUTS.get(node.op_type, frozenset()):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or not value.is_initializer():
                continue
            if any(place not in _FLOAT32_INPUTS.get(reader.op_type, ()) for reader, place in value.uses()):
                name = f"{node_name(node)}_float32_{index}"
                node.replace_input_with(index, add_initializer(graph, name, array_of(value)))


def _retarget(node: ir.Node, target: ir.DataType, precision: FloatPrecision) -> int:
    changes = 0
    if node.op_type == "Cast" and node.attributes.get_int("to") == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", target)
        changes += 1
    if node.op_type == "ConstantOfShape":
        changes += _retarget_fill(node, precision)
    for output in node.outputs:
        if output.dtype == ir.DataType.FLOAT:
            output.type = ir.TensorType(target)  # a clone shares its types with the original: never change one in place
            changes += 1
    return changes


def _retarget_fill(node: ir.Node, precision: FloatPrecision) -> int:
    fill = node.attributes.get_tensor("value", None)
    if fill is not None and fill.dtype != ir.DataType.FLOAT:
        return 0
    number: npt.NDArray[Any] = np.zeros(1, np.float32)
    if fill is not None:
        number[0] = float(fill.numpy().reshape(-1)[0])
    value = ir.tensor(_narrowed(number, precision, place=f"node {node_name(node)}"))
    node.attributes["value"] = ir.AttrTensor("value", value)
    return 1


def _cast_inputs(graph: ir.Graph, target: ir.DataType) -> None:
    for value in graph.inputs:
        readers = tuple((node, index) for node, index in value.uses() if not is_kept(node))
        if value.dtype != ir.DataType.FLOAT or not readers:
            continue
        first = next(node for node in graph if any(node is reader for reader, _ in readers))
        cast = ir.node("Cast", [value], {"to": int(target)}, name=f"{value_name(value)}_cast")
        inside = insert_before(first, cast, like=value, dtype=target)
        for reader, index in readers:
            reader.replace_input_with(index, inside)


def _cast_outputs(graph: ir.Graph, target: ir.DataType) -> None:
    for index, value in enumerate(tuple(graph.outputs)):
        if value.dtype != target:
            continue
        name = value_name(value)
        value.name = f"{name}_{target.name.lower()}"
        cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_cast")
        result = cast.outputs[0]
        result.name = name
        result.type = ir.TensorType(ir.DataType.FLOAT)
        result.shape = value.shape
        graph.append(cast)
        graph.outputs[index] = result
