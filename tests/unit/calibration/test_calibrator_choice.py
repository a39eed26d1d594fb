"""One tensor, one calibrator; stored ranges fit their checkpoint and find their layers under other tensor names."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpusq_deploy.artifacts.base import json_from_value
from gpusq_deploy.artifacts.calibration import AMAX, CalibrationTable, Calibrator, TensorRange
from gpusq_deploy.artifacts.recipe import Recipe, Rule
from gpusq_deploy.calibration.calibrator_choice import calibrators_for
from gpusq_deploy.calibration.stored_ranges import read_table, table_for_layers
from gpusq_deploy.errors import GpusqError
from gpusq_deploy.graph.layers import GraphLayer


def layer(name: str, tensor: str) -> GraphLayer:
    return GraphLayer(
        layer=name, node=f"node_{name}", kind="linear", input=tensor, weight="w", channel_axis=1, n=2, k=4, macs=8
    )


def recipe(*rules: Rule) -> Recipe:
    return Recipe(schema="gpusq.recipe/1", name="mine", description="a test", rules=rules)


def test_the_rule_that_decides_a_layer_decides_its_calibrator() -> None:
    mine = recipe(Rule(match="fc1", calibrator="entropy", reason=""), Rule(reason=""))
    layers = (layer("fc1", "x"), layer("fc2", "y"))
    assert calibrators_for(layers, mine) == {"x": Calibrator(name="entropy"), "y": AMAX}
    assert calibrators_for(layers, mine, usual=Calibrator(name="mse"))["y"] == Calibrator(name="mse")


def test_two_calibrators_for_one_tensor_are_refused() -> None:
    mine = recipe(Rule(match="q", calibrator="mse", reason=""), Rule(reason=""))
    with pytest.raises(GpusqError, match="q and k read one tensor, with the calibrators mse and amax"):
        calibrators_for((layer("q", "x"), layer("k", "x")), mine)


def table(**ranges: tuple[str, float]) -> CalibrationTable:
    entries = tuple(
        TensorRange(tensor=tensor, layer=name, amax=amax, origin="") for name, (tensor, amax) in ranges.items()
    )
    return CalibrationTable(source="photos", digest="", images=3, observer="amax", model="sha256:1", ranges=entries)


def test_layers_find_their_ranges_under_other_tensor_names() -> None:
    found = table_for_layers(table(q=("x", 2.0), fc=("h", 3.0)), (layer("q", "a"), layer("fc", "b")), place="f")
    assert {entry.tensor: entry.amax for entry in found.ranges} == {"a": 2.0, "b": 3.0}


def test_layers_of_one_tensor_share_its_range() -> None:
    found = table_for_layers(table(q=("x", 2.0)), (layer("k", "x"), layer("q", "x")), place="f")
    assert [(entry.tensor, entry.amax) for entry in found.ranges] == [("x", 2.0)]


def test_a_layer_without_a_stored_range_is_named() -> None:
    with pytest.raises(GpusqError, match="lack the inputs of fc") as caught:
        table_for_layers(table(q=("x", 2.0)), (layer("q", "x"), layer("fc", "h")), place="f")
    assert "--recipe" in str(caught.value.hint)


def test_ranges_of_another_checkpoint_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranges.json"
    path.write_bytes(json_from_value(table(q=("x", 2.0))))
    assert read_table(path, model="sha256:1").ranges[0].amax == 2.0
    with pytest.raises(GpusqError, match="another checkpoint"):
        read_table(path, model="sha256:2")
