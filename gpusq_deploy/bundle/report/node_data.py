"""A bundle's figures for each node of model.onnx, as google-ai-edge's Model Explorer shows them beside a graph.

The format is that of `GraphNodeData` in its node_data_builder.py: `results` by the node's id, which its adapter for
ONNX takes from the node's name. A file holds one figure of a node, so there is one for each figure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpusq_deploy.artifacts import MODEL, BuiltEngine, Precision, YesNoUnknown, require_folder, write_whole
from gpusq_deploy.bundle.files import Bundle
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph import map_model, node_name, value_name

_MARK = '{\n  "name": "gpusq '
_BLACK, _WHITE = "#1b1f24", "#ffffff"
_PRECISIONS: dict[Precision, str] = {
    "int4": "#6639ba",
    "int8": "#0550ae",
    "fp8": "#116329",
    "fp16": "#57606a",
    "bf16": "#57606a",
    "fp32": "#a40e26",
}
_SPARSE: dict[YesNoUnknown, str] = {"yes": "#116329", "no": "#a40e26", "unknown": "#7a4b00"}
# From the least value to the most.
_UP = ("#ffc1ba", "#fff1b3", "#dafbe1")


def node_data(bundle: Bundle) -> dict[str, str]:
    """JSON by file name: precision and 2:4 for each engine (as planned where there is none), SQNR, predicted time.

    What isn't known of any node has no file.
    """
    tables = {**dict(_of_engines(bundle)), "sqnr": _sqnr(bundle), "microseconds": _microseconds(bundle)}
    return {f"{name}.json": json.dumps(table, indent=2) + "\n" for name, table in tables.items() if table["results"]}


def write_node_data(bundle: Bundle, folder: Path) -> tuple[Path, ...]:
    """Write `node_data` into a folder, which is made where it isn't there; each file whole or not at all.

    Raises:
        GpusqError: A file there is something else, or the disk refused.
    """
    require_folder(folder)
    tables = {folder / name: text for name, text in node_data(bundle).items()}
    for path in tables:
        if path.exists() and _MARK.encode() not in path.read_bytes()[: len(_MARK)]:
            raise GpusqError(
                "the file exists and is no node data of ours; it was left alone",
                place=str(path),
                hint="name another folder",
            )
    try:
        folder.mkdir(exist_ok=True)
        for path, text in tables.items():
            write_whole(path, text.encode())
    except OSError as error:
        raise GpusqError(f"cannot write the node data: {error.strerror}", place=str(folder)) from error
    return tuple(tables)


def _of_engines(bundle: Bundle) -> Iterator[tuple[str, dict[str, Any]]]:
    for engine in bundle.receipt.engines:
        yield f"precision-{engine.target}", _built(engine)
        yield f"sparse-{engine.target}", _ran(engine)
    if not bundle.receipt.engines:
        planned = {
            layer.node: _word(layer.precision.upper(), _PRECISIONS[layer.precision]) for layer in bundle.plan.layers
        }
        yield "precision", _table("precision, as planned", planned)


def _built(engine: BuiltEngine) -> dict[str, Any]:
    found = {
        layer.node: _word(layer.precision.upper(), _PRECISIONS[layer.precision])
        for layer in engine.layers
        if layer.precision is not None
    }
    return _table(f"precision on {engine.target}", found)


def _ran(engine: BuiltEngine) -> dict[str, Any]:
    found = {
        layer.node: _word(f"2:4, sparse kernel: {layer.sparse_executed}", _SPARSE[layer.sparse_executed])
        for layer in engine.layers
        if layer.sparse_weights_valid
    }
    return _table(f"2:4 on {engine.target}", found)


def _sqnr(bundle: Bundle) -> dict[str, Any]:
    """At the node whose output was compared: the last of a block, or a layer's own with its bias."""
    found = bundle.receipt.verification
    drifts = () if found is None or found.synthetic else (*found.blocks, *found.layers)
    makers = _makers(bundle) if drifts else {}
    results = {makers[drift.tensor]: {"value": drift.sqnr_db} for drift in drifts if drift.tensor in makers}
    return _table("SQNR, dB", results, colours=_UP)


def _microseconds(bundle: Bundle) -> dict[str, Any]:
    nodes = {layer.layer: layer.node for layer in bundle.plan.layers}
    cost = bundle.receipt.cost
    results = {
        nodes[each.layer]: {"value": each.built.microseconds}
        for each in (() if cost is None else cost.layers)
        if each.built.microseconds is not None and each.layer in nodes
    }
    target = "" if cost is None else cost.target
    return _table(f"predicted on {target}, at least µs", results, colours=_UP[::-1])


def _makers(bundle: Bundle) -> dict[str, str]:
    """The node that makes each tensor, by their names."""
    graph = map_model(bundle.path / MODEL).graph
    return {value_name(output): node_name(node) for node in graph for output in node.outputs}


def _word(value: str, colour: str) -> dict[str, Any]:
    return {"value": value, "bgColor": colour, "textColor": _WHITE}


def _table(name: str, results: Mapping[str, Any], colours: tuple[str, ...] = ()) -> dict[str, Any]:
    stops = [
        {"stop": place / (len(colours) - 1), "bgColor": colour, "textColor": _BLACK}
        for place, colour in enumerate(colours)
    ]
    return {"name": f"gpusq {name}", "results": dict(results), **({"gradient": stops} if stops else {})}
