"""Node data for google-ai-edge's Model Explorer: its format, and that the names are those of model.onnx's nodes."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import bundles
import msgspec
import onnx_ir as ir
import pages
import pytest

from gpusq_deploy.artifacts.receipt import CostEstimate, LayerCost, LayerShare
from gpusq_deploy.bundle.files import Bundle, read_bundle
from gpusq_deploy.bundle.report.node_data import node_data, write_node_data
from gpusq_deploy.errors import GpusqError

# As documented in node_data_builder.py of ai-edge-model-explorer 0.1.34.
GRAPH_FIELDS = {"results", "name", "thresholds", "gradient"}
RESULT_FIELDS = {"value", "bgColor", "textColor"}
STOP_FIELDS = {"stop", "bgColor", "textColor"}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Of one layer, whose drift and cost are known."""
    whole = read_bundle(bundles.write(tmp_path / "m.gpusq"))
    (layer,) = whole.plan.layers
    (output,) = ir.load(whole.path / "model.onnx").graph.outputs
    assert output.name is not None
    drift = msgspec.structs.replace(pages.drift("fc1", 31.0), tensor=output.name)
    share = LayerShare(kernels=1, bytes_moved=1, flops={}, microseconds=2.5)
    cost = CostEstimate(
        target="a100",
        built=None,
        unquantised=None,
        note="predicted",
        layers=(LayerCost(layer=layer.layer, built=share, unquantised=share, pays="yes"),),
    )
    built = msgspec.structs.replace(pages.built_layer(layer.layer, ran="no"), node=layer.node)
    verification = msgspec.structs.replace(pages.VERIFICATION, blocks=(drift,), layers=())
    return pages.changed(whole, engines=(pages.engine([built]),), verification=verification, cost=cost)


@pytest.fixture
def tables(bundle: Bundle) -> dict[str, Any]:
    return {name: json.loads(text) for name, text in node_data(bundle).items()}


def test_each_figure_has_a_file_and_its_values(bundle: Bundle, tables: dict[str, Any]) -> None:
    (layer,) = bundle.plan.layers
    assert list(tables) == ["precision-a100.json", "sparse-a100.json", "sqnr.json", "microseconds.json"]
    values = {name: [result["value"] for result in table["results"].values()] for name, table in tables.items()}
    assert list(values.values()) == [["INT8"], ["2:4, sparse kernel: no"], [31.0], [2.5]]
    assert list(tables["microseconds.json"]["results"]) == [layer.node]


def test_every_key_is_a_node_of_the_model(bundle: Bundle, tables: dict[str, Any]) -> None:
    nodes = {node.name for node in ir.load(bundle.path / "model.onnx").graph}
    assert all(table["results"].keys() <= nodes for table in tables.values())


def test_fields_are_the_documented_ones(tables: dict[str, Any]) -> None:
    for table in tables.values():
        assert table.keys() <= GRAPH_FIELDS
        assert all(result.keys() <= RESULT_FIELDS for result in table["results"].values())
        stops = table.get("gradient", [])
        assert all(stop.keys() <= STOP_FIELDS for stop in stops)
        assert not stops or [stops[0]["stop"], stops[-1]["stop"]] == [0, 1]


@pytest.mark.skipif(importlib.util.find_spec("model_explorer") is None, reason="ai-edge-model-explorer isn't installed")
def test_the_package_s_own_classes_read_and_write_the_same(
    tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = the_builder(monkeypatch)
    for table in tables.values():
        results = {key: builder.NodeDataResult(**result) for key, result in table["results"].items()}
        gradient = [builder.GradientItem(**stop) for stop in table.get("gradient", [])]
        theirs = builder.GraphNodeData(results=results, name=table["name"], gradient=gradient)
        written = json.loads(theirs.to_json_string())
        assert {name: value for name, value in written.items() if value not in (False, [])} == table
        assert {field.name for field in dataclasses.fields(builder.GraphNodeData)} >= GRAPH_FIELDS


def test_without_an_engine_the_plan_is_told_and_what_is_unknown_has_no_file(tmp_path: Path) -> None:
    assert list(node_data(read_bundle(bundles.write(tmp_path / "m.gpusq")))) == ["precision.json"]


def test_only_our_own_files_are_replaced(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    assert write_node_data(bundle, folder) == write_node_data(bundle, folder)
    (folder / "sqnr.json").write_text("{}")
    with pytest.raises(GpusqError, match="it was left alone"):
        write_node_data(bundle, folder)
    assert (folder / "sqnr.json").read_text() == "{}"


def the_builder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its module alone: the package's own `__init__` starts by importing a web server."""
    spec = importlib.util.find_spec("model_explorer")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    package = types.ModuleType("model_explorer")
    package.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "model_explorer", package)
    return importlib.import_module("model_explorer.node_data_builder")
