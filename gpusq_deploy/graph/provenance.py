"""Which pass made a node, so that an error about the node can say so."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir

from gpusq_deploy.graph.mapped import map_model

# A node's own metadata, which ONNX files keep.
MADE_BY = "gpusq_deploy.pass"
# On what stays float32 in an FP16 graph, because FP16 can't hold what it reads or makes.
KEPT_FLOAT32 = "gpusq_deploy.float32"
_EXPORTER = "the exporter"
_MOST = 5


def mark_new_nodes(graph: ir.Graph, before: Iterable[ir.Node], name: str) -> None:
    """Write a pass's name on the nodes that weren't there before it."""
    known = set(before)
    for node in graph:
        if node not in known:
            node.metadata_props[MADE_BY] = name


def is_kept(node: ir.Node) -> bool:
    """Whether a node is meant to stay float32 in an FP16 graph."""
    return KEPT_FLOAT32 in node.metadata_props


def made_by(node: ir.Node) -> str:
    """The pass that made a node; the exporter where none did."""
    name = node.metadata_props.get(MADE_BY)
    return _EXPORTER if name is None else f"pass {name}"


def nodes_named_in(text: str, model: Path) -> str:
    """The nodes of a model that a builder's words name, each with its operator and who made it; empty where none is.

    Args:
        text: What the builder said.
        model: The ONNX file that it was given.
    """
    words = set(re.split(r"[\s:,()\[\]'\"]+", text))
    found = [node for node in map_model(model).graph if node.name and node.name in words]
    named = [f"node {node.name!r} ({node.op_type}), made by {made_by(node)}" for node in found[:_MOST]]
    return "; ".join(named) + (f"; and {len(found) - _MOST} more" if len(found) > _MOST else "")
