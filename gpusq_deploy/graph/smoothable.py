"""Which activations can be scaled and shifted by channel for nothing, because something beside them takes it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from gpusq_deploy.graph.layers import GraphLayer
from gpusq_deploy.graph.value_channels import ValueChannels, value_channels
from gpusq_deploy.graph.values import add_initializer, array_of, is_constant, value_name

Producer = Literal["layer-norm", "gelu", "attention"]
_PRODUCERS: Mapping[str, Producer] = {"LayerNormalization": "layer-norm", "Gelu": "gelu"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoothable:
    """An activation [..., K] and the layers that read it.

    Attributes:
        tensor: Its name.
        producer: `layer-norm`: scale and bias of the LayerNormalization take the factors up. `gelu`: one Mul and one
            Sub behind it, which a compiler fuses into the kernel that computes the GELU, or x·sigmoid(a·x), of the same
            shape. `attention`: the Linear layer that writes the attention's values takes them up.
        readers: All its readers: Linear layers.
        shiftable: Whether every reader has a bias that can take an offset up; of an attention, the writer too.
        values: Of an attention: who writes its values.
    """

    tensor: str
    producer: Producer
    readers: tuple[GraphLayer, ...]
    shiftable: bool
    values: ValueChannels | None = None


def find_smoothable(
    model: ir.Model, layers: Sequence[GraphLayer]
) -> tuple[tuple[Smoothable, ...], tuple[tuple[str, str], ...]]:
    """What can be smoothed, and for each other layer its name and why not.

    1. All readers of the activation are among `layers`, are Linear, and take it as their first input.
    2. It comes from a LayerNormalization over its last axis with a constant scale, from a Gelu, from x·sigmoid(a·x)
       (CLIP's QuickGELU, or SiLU), or from an attention whose values a Linear layer writes; see `value_channels`.

    Declined: everything else; in particular a SwiGLU.

    Args:
        model: A canonical float graph.
        layers: Layers that are to be quantised and smoothed.
    """
    nodes = {node.name: node for node in model.graph}
    by_tensor: dict[str, list[GraphLayer]] = {}
    for layer in layers:
        by_tensor.setdefault(layer.input, []).append(layer)
    found: list[Smoothable] = []
    declined: list[tuple[str, str]] = []
    for tensor, readers in by_tensor.items():
        place = _place(nodes, tensor, readers, model.opset_imports.get("", 20))
        if isinstance(place, str):
            declined.extend((reader.layer, place) for reader in readers)
        else:
            found.append(place)
    return tuple(found), tuple(declined)


def _place(
    nodes: Mapping[str | None, ir.Node], tensor: str, readers: Sequence[GraphLayer], opset: int
) -> Smoothable | str:
    """Where an activation's factors go; or why nowhere."""
    value = nodes[readers[0].node].inputs[0]
    producer = None if value is None else value.producer()
    if value is None or producer is None:
        return "it reads the graph's input"
    reason = _reason(value, readers)
    if reason is not None:
        return reason
    holders = [nodes[reader.node] for reader in readers]
    kind, values = "gelu" if _gates_itself(producer) else _PRODUCERS.get(producer.op_type), None
    if kind is None:
        answer = value_channels(value, opset)
        if isinstance(answer, str):
            return f"its input comes from a {producer.op_type}, which can't take factors up, and {answer}"
        kind, values = "attention", answer
        holders.append(nodes[answer.writer])
    elif kind == "layer-norm" and (reason := _norm_reason(producer, value)) is not None:
        return reason
    shiftable = all(bias_place(node) is not None for node in holders)
    return Smoothable(tensor=tensor, producer=kind, readers=tuple(readers), shiftable=shiftable, values=values)


def _gates_itself(node: ir.Node) -> bool:
    """Whether it is x·sigmoid(a·x), a constant."""
    if node.op_type != "Mul":
        return False
    return any(_is_gate_of(gated, gate) for gated, gate in (node.inputs[:2], node.inputs[1::-1]))


def _is_gate_of(gated: ir.Value | None, gate: ir.Value | None) -> bool:
    """Whether `gate` is the sigmoid of `gated`, or of that times a constant."""
    sigmoid = None if gate is None else gate.producer()
    if sigmoid is None or sigmoid.op_type != "Sigmoid":
        return False
    (inside,) = sigmoid.inputs
    scaled = None if inside is None else inside.producer()
    if inside is gated or scaled is None or scaled.op_type != "Mul":
        return inside is gated
    return gated in scaled.inputs and any(value is not None and is_constant(value) for value in scaled.inputs)


def bias_place(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The node and input that hold a Linear layer's bias [N], or None: the Gemm itself, or the one Add behind it.

    Declined: a Gemm with an alpha or a beta, and a product that is also the graph's output: the Add isn't part of that.
    """
    if node.op_type == "Gemm":
        plain = all(node.attributes.get_float(name, 1.0) == 1 for name in ("alpha", "beta"))
        return (node, 2) if plain and len(node.inputs) > 2 and is_constant(node.inputs[2]) else None
    uses = node.outputs[0].uses()
    if node.op_type != "MatMul" or len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    reader, index = next(iter(uses))
    other = reader.inputs[1 - index] if reader.op_type == "Add" else None
    one_row = other is not None and other.shape is not None and len(other.shape) == 1
    return (reader, 1 - index) if one_row and is_constant(other) else None


def add_to_bias(graph: ir.Graph, node: ir.Node, change: npt.NDArray[np.floating[Any]], name: str) -> bool:
    """Give a Linear layer a bias that is larger by `change` [N], as a new constant; False where it has none."""
    found = bias_place(node)
    if found is None:
        return False
    holder, index = found
    before = holder.inputs[index]
    assert before is not None, "bias_place has seen it"
    grown = (array_of(before).astype(np.float64) + change).astype(np.float32)
    holder.replace_input_with(index, add_initializer(graph, name, grown))
    return True


def _reason(value: ir.Value, readers: Sequence[GraphLayer]) -> str | None:
    if any(reader.kind != "linear" or reader.only_seen for reader in readers):
        return "not a Linear layer"
    places = {(use.node.name, use.idx) for use in value.uses()}
    if places != {(reader.node, 0) for reader in readers} or value.is_graph_output():
        return f"something else reads tensor {value_name(value)} too"
    if any(use.node.attributes.get_int("transA", 0) for use in value.uses()):
        return "its Gemm transposes the input"
    return None


def _norm_reason(producer: ir.Node, value: ir.Value) -> str | None:
    last = -1 if value.shape is None else len(value.shape) - 1
    constant = is_constant(producer.inputs[1]) and (len(producer.inputs) < 3 or is_constant(producer.inputs[2]))
    if producer.attributes.get_int("axis", -1) not in {-1, last} or not constant:
        return "its LayerNormalization isn't over the last axis, or isn't constant"
    return None
