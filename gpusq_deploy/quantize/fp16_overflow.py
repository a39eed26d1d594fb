"""Tensors that FP16 can't hold: which they are, what stays float32 around them, and how they are called. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from gpusq_deploy.artifacts import (
    Fp32Tensor,
)
from gpusq_deploy.graph import array_of, island_nodes, module_of, value_name
from gpusq_deploy.numerics import FLOAT32_LARGEST, FP16_LARGEST, largest_finite, overflows_fp16

# Data that calibration hasn't seen may reach further.
MARGIN = 2.0
NOT_LOOKED_AT = "FP16 overflow between the layers was not checked: there is no --calib"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp16Overflow:
    """Tensors that stay float32, the nodes that read or make them, and what the plan should say beside."""

    tensors: tuple[Fp32Tensor, ...] = ()
    nodes: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def fp16_overflow_in(model: ir.Model, seen: Mapping[str, tuple[float, str]], *, looked: bool) -> Fp16Overflow:
    """Tensors beyond half of what FP16 holds, and constants that don't fit at all.

    Float32's largest number stands for infinity in attention masks; what reaches it isn't one of them.

    Args:
        model: The float graph that is planned.
        seen: The largest magnitude by tensor, and who saw it.
        looked: Whether `seen` is about the tensors between the layers too.
    """
    tensors = (*_constants(model.graph), *_activations(model.graph, seen))
    return Fp16Overflow(
        tensors=tensors,
        nodes=island_nodes(model.graph, [tensor.tensor for tensor in tensors]),
        notes=() if looked else (NOT_LOOKED_AT,),
    )


def text_of(tensor: Fp32Tensor) -> str:
    """One tensor in words."""
    where = f" of {tensor.module}" if tensor.module else ""
    return f"{tensor.tensor}{where} reaches {tensor.amax:.6g} ({tensor.origin})"


def _constants(graph: ir.Graph) -> Iterator[Fp32Tensor]:
    for name, value in graph.initializers.items():
        if value.dtype != ir.DataType.FLOAT or not value.uses():
            continue
        array = array_of(value)
        if overflows_fp16(array):
            yield Fp32Tensor(tensor=name, module="", amax=largest_finite(array), origin="a constant", constant=True)


def _activations(graph: ir.Graph, seen: Mapping[str, tuple[float, str]]) -> Iterator[Fp32Tensor]:
    values = [(value, "") for value in graph.inputs]
    values += [(value, module_of(node)) for node in graph for value in node.outputs]
    for value, module in values:
        amax, origin = seen.get(value_name(value), (0.0, ""))
        if FP16_LARGEST / MARGIN < amax < FLOAT32_LARGEST and value.dtype == ir.DataType.FLOAT:
            yield Fp32Tensor(tensor=value_name(value), module=module, amax=amax, origin=origin)
