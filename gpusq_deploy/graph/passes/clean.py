"""Remove what the exporter leaves behind and TensorRT has no use for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import common

from gpusq_deploy.graph.provenance import MADE_BY
from gpusq_deploy.graph.values import NAME_SCOPES

_KEPT = frozenset({NAME_SCOPES, MADE_BY})


@dataclass(frozen=True, slots=True)
class Clean:
    """Bring an exported graph into the form that the other passes expect.

    1. Constants become initializers, identities and unused nodes go (onnx_ir's own passes). Identities stay in a graph
       that answers one tensor under two names: without them it would answer twice under one.
    2. Of metadata stay `name_scopes` and which pass made a node: stack traces hold paths of the exporting machine.
    3. Every node has a name, unique in the graph.
    """

    name: ClassVar[str] = "clean"

    def run(self, model: ir.Model) -> int:
        """See the class."""
        changes = 0
        for step in (
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            *(() if _answers_twice(model.graph) else (common.IdentityEliminationPass(),)),
            common.RemoveUnusedNodesPass(),
            common.NameFixPass(),
        ):
            changes += int(step(model).modified)
        return changes + _strip_metadata(model)


def _answers_twice(graph: ir.Graph) -> bool:
    outputs = set(graph.outputs)
    return any(node.op_type == "Identity" and outputs.issuperset((node.inputs[0], node.outputs[0])) for node in graph)


def _strip_metadata(model: ir.Model) -> int:
    changes = 0
    for holder in (model, model.graph, *model.graph, *_values(model.graph)):
        kept = {key: value for key, value in holder.metadata_props.items() if key in _KEPT}
        if kept != dict(holder.metadata_props) or holder.doc_string:
            holder.metadata_props.clear()
            holder.metadata_props.update(kept)
            holder.doc_string = None
            changes += 1
    return changes


def _values(graph: ir.Graph) -> list[ir.Value]:
    outputs = [output for node in graph for output in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *outputs]
