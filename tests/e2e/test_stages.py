"""Stages keep what they found: a second recipe starts from the same float graph and observations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gpusq_deploy.artifacts.base import digest_of_file
from gpusq_deploy.artifacts.manifest import BatchRange
from gpusq_deploy.artifacts.recipe import load_recipe
from gpusq_deploy.calibration.data import ImageFolder
from gpusq_deploy.compile.float_graph import export_graph
from gpusq_deploy.compile.inputs import open_inputs
from gpusq_deploy.compile.observe_stage import observe_graph
from gpusq_deploy.compile.pipeline import build_bundle, compile_checkpoint
from gpusq_deploy.compile.request import BuildRequest
from gpusq_deploy.compile.target_checks import expressible_recipe
from gpusq_deploy.graph.passes.log import PassLog
from gpusq_deploy.progress import SILENT

pytestmark = pytest.mark.slow


def request(model: Path, photos: Path, out: Path, recipe: str | None) -> BuildRequest:
    return BuildRequest(
        model=model,
        arch=None,
        quantize=True,
        sparse=False,
        float_type="fp16",
        recipe=None if recipe is None else load_recipe(Path(recipe)),
        calib=str(photos),
        targets=(),
        batch=BatchRange(minimum=1, optimum=2, maximum=4),
        opset=20,
        out=out,
        force=False,
    )


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images that are read, by their numbers."""
    found: list[int] = []
    sample: Callable[..., object] = ImageFolder.sample

    def counted(self: ImageFolder, index: int) -> object:
        found.append(index)
        return sample(self, index)

    monkeypatch.setattr(ImageFolder, "sample", counted)
    return found


def test_a_second_recipe_neither_exports_nor_looks_again(
    dense: Path, photos: Path, tmp_path: Path, reads: list[int]
) -> None:
    first, second = (request(dense, photos, tmp_path / str(recipe), recipe) for recipe in (None, "plain_wi8_ai8"))
    opened = open_inputs(first, expressible_recipe(first), SILENT)
    graph = export_graph(first, opened.checkpoint, tmp_path, SILENT, PassLog())
    observed = observe_graph(graph, first, expressible_recipe(first), opened.data, SILENT)
    calibration = len(opened.data.calibrate)
    assert sorted(reads) == sorted(set(reads)), "each image is run once"
    assert len(reads) == calibration
    build_bundle(first, opened, graph, observed, SILENT)
    reads.clear()
    again = observe_graph(graph, second, expressible_recipe(second), opened.data, SILENT, observed.seen)
    assert reads == []
    kept = build_bundle(second, opened, graph, again, SILENT)
    fresh = compile_checkpoint(request(dense, photos, tmp_path / "fresh", "plain_wi8_ai8"), SILENT)
    assert kept.plan.layers == fresh.plan.layers
    assert digest_of_file(kept.path / "model.onnx") == digest_of_file(fresh.path / "model.onnx")


def test_a_build_runs_each_calibration_image_once(dense: Path, photos: Path, tmp_path: Path, reads: list[int]) -> None:
    """One pass, also with a recipe that places quantisers in attentions; verification has images of its own."""
    for recipe in (None, "fused_wi8_ai8"):
        reads.clear()
        asked = request(dense, photos, tmp_path / str(recipe), recipe)
        opened = open_inputs(asked, expressible_recipe(asked), SILENT)
        graph = export_graph(asked, opened.checkpoint, tmp_path, SILENT, PassLog())
        observe_graph(graph, asked, expressible_recipe(asked), opened.data, SILENT)
        assert len(reads) == len(set(reads)) == len(opened.data.calibrate)
