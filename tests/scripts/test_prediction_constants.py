"""What the package predicts with is what was fitted, and the models that were fitted to are the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gpusq_deploy.benchmarks.peers.prediction_shapes import Shape, works_of_shape
from gpusq_deploy.benchmarks.peers.prediction_table import packaged, read_points
from gpusq_deploy.engines.prediction.constants import load_fitted
from gpusq_deploy.engines.prediction.parts import parts_of_works

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / "prediction.json").read_text())
    return result


def test_the_package_holds_what_was_fitted(found: dict[str, Any]) -> None:
    assert packaged(found) == load_fitted()


def test_predictions_follow_from_the_constants(found: dict[str, Any]) -> None:
    constants = load_fitted().constants
    kept = {
        tuple(point[name] for name in ("model", "batch", "source", "precision")): point for point in found["points"]
    }
    points = [point for point in read_points() if point.software != "fastertransformer"]
    assert points
    for point in points:
        row = kept[tuple(point.row[name] for name in ("model", "batch", "source", "precision"))]
        if row["resolution"] == point.row["resolution"] and row["patch"] == point.row["patch"]:
            total = parts_of_works(point.works, point.device, constants).total
            assert total == pytest.approx(row["predicted"], rel=2e-3)


# Giga multiply-accumulates of one image, products and attention, by timm's own tables (results/*.csv, infer_gmacs).
@pytest.mark.parametrize(
    ("model", "resolution", "patch", "gmacs"),
    [
        ("deit_tiny", 224, 16, 1.26),
        ("deit_small", 384, 16, 15.52),
        ("vit_base", 224, 16, 17.58),
        ("vit_large", 384, 16, 191.21),
        ("swin_tiny", 224, 4, 4.51),
        ("swin_base", 384, 4, 47.19),
    ],
)
@pytest.mark.parametrize("software", ["tensorrt", "fastertransformer"])
def test_the_shapes_are_those_of_the_models(
    model: str, resolution: int, patch: int, gmacs: float, software: Any
) -> None:
    shape = Shape(model=model, resolution=resolution, patch=patch, batch=1, precision="fp16", software=software)
    macs = sum(times * work.flops / 2 for times, work in works_of_shape(shape))
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.01)
